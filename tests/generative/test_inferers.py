"""Our networks under the inferers and schedulers of monai-generative give what our own pipeline gives.

The inferers pass no class labels, so these are bound to the UNet before. ``make test-generative`` runs this.
"""

from functools import partial

import pytest
import torch
from torch import nn

from medfusion_monai.diffusion.ddim import ddim_sample
from medfusion_monai.diffusion.guidance import guided_denoiser
from medfusion_monai.diffusion.inferer import LatentDiffusionSampler
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.networks.autoencoder import Autoencoder
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.networks.unet import UNet
from medfusion_monai.runtime.seeds import generators, randn
from medfusion_monai.training.prepare_batch import DiffusionPrepareBatch

inferers = pytest.importorskip("generative.inferers", reason="needs monai-generative", exc_type=ImportError)
schedulers = pytest.importorskip("generative.networks.schedulers", reason="needs monai 1.6.0", exc_type=ImportError)

SEEDS = [11, 22, 33]
LABELS = torch.tensor([0, 1, 1])
SHAPE = (4, 3, 2)
BETAS = {"beta_start": 0.002, "beta_end": 0.02}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    autoencoder = Autoencoder(in_channels=1, latent_channels=4, channels=(8, 8, 16))
    unet = UNet(4, channels=(8, 8, 16), embedding_channels=32, norm_groups=4)
    nn.init.normal_(unet.conv_out.weight, std=0.3)  # both start at zero and would hide every difference
    nn.init.normal_(autoencoder.conv_out.weight, std=0.1)
    nn.init.zeros_(autoencoder.to_moments[1].weight[4:])  # a posterior without width: its sample is its mean
    nn.init.constant_(autoencoder.to_moments[1].bias[4:], -30.0)
    autoencoder.set_latent_statistics(torch.linspace(-0.1, 0.1, 4), torch.linspace(0.1, 0.4, 4))
    return Medfusion(autoencoder, unet).eval()


@pytest.fixture
def step(network):
    """Images, and what our trainer makes of them: noise, timesteps, and the UNet's prediction."""
    images = torch.rand(3, 1, 12, 8)
    prepare = DiffusionPrepareBatch(network.autoencoder, NoiseSchedule(**BETAS), label_dropout=0.0)
    noisy, noise, _, keywords = prepare({"image": images, "label": LABELS, "seed": SEEDS}, torch.device("cpu"))
    with torch.no_grad():
        prediction = network.unet(noisy, **keywords)
    assert prediction.std() > 0.1
    return images * 2 - 1, noise, keywords["timesteps"], prediction


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DDPMScheduler"])
@torch.no_grad()
def test_training_call_predicts_what_our_trainer_does(scheduler, network, step):
    images, noise, timesteps, expected = step
    settings = {"schedule": "scaled_linear_beta", "clip_sample": False, **BETAS}
    infer = inferers.LatentDiffusionInferer(getattr(schedulers, scheduler)(1000, **settings), scale_factor=1.0)
    bound = partial(network.unet, class_labels=LABELS)
    actual = infer(images, network.autoencoder, bound, noise, timesteps)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    latents = network.autoencoder.encode_stage_2_inputs(images)
    plain = inferers.DiffusionInferer(infer.scheduler)
    torch.testing.assert_close(plain(latents, bound, noise, timesteps), expected, rtol=1e-4, atol=1e-5)


def test_samples_are_those_of_our_sampler(network):
    sampler = LatentDiffusionSampler(NoiseSchedule(20, **BETAS), SHAPE, num_inference_steps=20, eta=0.0)
    expected = sampler(LABELS, network, SEEDS)
    scheduler = schedulers.DDIMScheduler(20, "scaled_linear_beta", clip_sample=False, **BETAS)
    scheduler.set_timesteps(20)
    bound = partial(network.unet, class_labels=LABELS)
    infer = inferers.LatentDiffusionInferer(scheduler, scale_factor=1.0)
    images = infer.sample(randn(SHAPE, generators(SEEDS)), network.autoencoder, bound, verbose=False)
    assert expected.std() > 0.01
    torch.testing.assert_close((images * 0.5 + 0.5).clamp(0, 1), expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_ddpm_sampling_is_our_sampler_at_eta_1(network):
    scheduler = schedulers.DDPMScheduler(20, "scaled_linear_beta", clip_sample=False, **BETAS)
    start = randn(SHAPE, generators(SEEDS))
    torch.manual_seed(0)
    denoiser = guided_denoiser(network.unet, LABELS)
    expected = ddim_sample(denoiser, start, NoiseSchedule(20, **BETAS), num_inference_steps=20, eta=1.0)
    torch.manual_seed(0)
    bound = partial(network.unet, class_labels=LABELS)
    latents = inferers.DiffusionInferer(scheduler).sample(start, bound, verbose=False)
    assert expected.std() > 0.1
    torch.testing.assert_close(latents, expected, rtol=1e-3, atol=1e-3)
