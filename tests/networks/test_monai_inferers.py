"""Our networks under MONAI's inferer and scheduler return what our own pipeline returns.

The inferers pass no class labels, so these are bound to the UNet before. MONAI's DDIM steps to the timestep before,
whichever are used, so the samplers are compared where all are used.
"""

from functools import partial

import pytest
import torch
from monai.inferers import LatentDiffusionInferer
from monai.networks.schedulers import DDIMScheduler
from torch import nn

from medfusion_monai.diffusion.guidance import guided_denoiser
from medfusion_monai.diffusion.inferer import LatentDiffusionSampler
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.networks.autoencoder import Autoencoder
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.networks.unet import UNet
from medfusion_monai.runtime.seeds import generators, randn
from medfusion_monai.training.prepare_batch import DiffusionPrepareBatch

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


def inferer(num_train_timesteps=1000, prediction_type="epsilon"):
    settings = {"clip_sample": False, "prediction_type": prediction_type, **BETAS}
    return LatentDiffusionInferer(DDIMScheduler(num_train_timesteps, "scaled_linear_beta", **settings))


@pytest.mark.parametrize("label_dropout", [0.0, 1.0])
@torch.no_grad()
def test_training_call_predicts_what_our_trainer_does(label_dropout, network):
    images = torch.rand(3, 1, 12, 8)
    prepare = DiffusionPrepareBatch(network.autoencoder, NoiseSchedule(**BETAS), label_dropout)
    noisy, noise, _, keywords = prepare({"image": images, "label": LABELS, "seed": SEEDS}, torch.device("cpu"))
    expected = network.unet(noisy, **keywords)
    bound = network.unet if label_dropout else partial(network.unet, class_labels=LABELS)
    actual = inferer()(images * 2 - 1, network.autoencoder, bound, noise, keywords["timesteps"])
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_samples_are_those_of_our_sampler(guidance_scale, prediction_type, network):
    schedule = NoiseSchedule(20, prediction_type=prediction_type, **BETAS)
    settings = {"num_inference_steps": 20, "eta": 0.0, "guidance_scale": guidance_scale}
    expected = LatentDiffusionSampler(schedule, SHAPE, **settings)(LABELS, network, SEEDS)
    denoiser = guided_denoiser(network.unet, LABELS, guidance_scale)

    def bound(x, timesteps, context=None):
        return denoiser(x, timesteps.expand(len(x)))  # MONAI passes one timestep for all

    noise = randn(SHAPE, generators(SEEDS))
    images = inferer(20, prediction_type).sample(noise, network.autoencoder, bound, verbose=False)
    assert expected.std() > 0.01
    torch.testing.assert_close((images * 0.5 + 0.5).clamp(0, 1), expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_unet_goes_into_the_sampler_as_it_is_and_samples_without_labels(network):
    noise = randn(SHAPE, generators(SEEDS))
    sample = partial(inferer(20).sample, noise, network.autoencoder, verbose=False)
    without = sample(network.unet)
    torch.testing.assert_close(without, sample(partial(network.unet, class_labels=torch.full((3,), -1))))
    assert (without - sample(partial(network.unet, class_labels=LABELS))).abs().max() > 1e-3
