import pytest
import torch
from monai.inferers import Inferer
from torch import nn

from medfusion_monai.diffusion import LatentDiffusionSampler, NoiseSchedule
from medfusion_monai.networks import NO_LABEL, Autoencoder, Medfusion, UNet

SEEDS = [11, 22, 33, 44]
LABELS = torch.tensor([0, 1, 1, 0])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    autoencoder = Autoencoder(in_channels=1, latent_channels=4, channels=(8, 8, 16, 16))
    unet = UNet(4, channels=(8, 8, 16), embedding_channels=32, norm_groups=4)
    nn.init.normal_(unet.conv_out.weight, std=0.3)  # both start at zero and would hide every difference
    nn.init.normal_(autoencoder.conv_out.weight, std=0.1)
    return Medfusion(autoencoder, unet).eval()


def sampler(**settings):
    settings = {"latent_shape": (4, 3, 2), "num_inference_steps": 6} | settings
    return LatentDiffusionSampler(NoiseSchedule(prediction_type="v_prediction"), **settings)


def test_it_is_an_inferer_of_monai():
    assert isinstance(sampler(), Inferer)


def test_images_have_their_shape_and_range_and_are_not_all_clipped(network):
    images = sampler()(LABELS, network, SEEDS)
    assert images.shape == (4, 1, 24, 16)
    assert images.min() >= 0
    assert images.max() <= 1
    assert ((images > 0) & (images < 1)).float().mean() > 0.5
    assert images.std() > 0.01


@pytest.mark.parametrize("settings", [{}, {"eta": 0.0}, {"guidance_scale": 2.0}])
def test_image_is_the_same_alone_and_in_any_batch(network, settings):
    sample = sampler(**settings)
    together = sample(LABELS, network, SEEDS)
    for index in range(4):
        alone = sample(LABELS[index : index + 1], network, SEEDS[index : index + 1])
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-5)
    order = [2, 0, 3, 1]
    shuffled = sample(LABELS[order], network, [SEEDS[index] for index in order])
    torch.testing.assert_close(shuffled, together[order], rtol=0, atol=1e-5)


def test_different_seeds_give_different_images(network):
    images = sampler()(torch.zeros(3, dtype=torch.long), network, [1, 2, 1])
    assert not torch.allclose(images[0], images[1], atol=1e-3)
    torch.testing.assert_close(images[0], images[2], rtol=0, atol=1e-5)


def test_labels_change_the_image(network):
    images = sampler()(torch.tensor([0, 1, NO_LABEL]), network, [5, 5, 5])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(images[a], images[b], atol=1e-3)


@pytest.mark.parametrize("settings", [{"guidance_scale": 4.0}, {"eta": 0.0}, {"num_inference_steps": 5}])
def test_each_setting_changes_the_image(network, settings):
    assert not torch.allclose(sampler(**settings)(LABELS, network, SEEDS), sampler()(LABELS, network, SEEDS), atol=1e-3)


def test_negative_label_changes_guided_images(network):
    plain, negative = sampler(guidance_scale=3.0), sampler(guidance_scale=3.0, negative_label=0)
    assert not torch.allclose(plain(LABELS, network, SEEDS), negative(LABELS, network, SEEDS), atol=1e-3)


def test_without_seeds_the_global_random_state_decides(network):
    torch.manual_seed(3)
    first, second = sampler()(LABELS, network), sampler()(LABELS, network)
    torch.manual_seed(3)
    assert torch.equal(sampler()(LABELS, network), first)
    assert not torch.allclose(first, second, atol=1e-3)


def test_latents_are_denormalized_before_decoding(network):
    class Scaled(nn.Module):
        unet = network.unet

        class autoencoder:
            @staticmethod
            def decode_stage_2_outputs(latents):
                return latents * 0 + 0.5

    assert torch.equal(sampler()(LABELS, Scaled(), SEEDS), torch.full((4, 4, 3, 2), 0.75))


def test_no_gradient_is_kept(network):
    assert not sampler()(LABELS, network, SEEDS).requires_grad


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_inference_steps": 0}, "between 1 and 1000"),
        ({"eta": 1.5}, "eta must be between 0 and 1"),
        ({"eta": "abc"}, "eta must be between 0 and 1, received 'abc'"),
        ({"guidance_scale": "abc"}, "guidance_scale must be a number"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a number"),
        ({"negative_label": 0}, "negative_label has no effect at guidance_scale 1"),
        ({"negative_label": 0, "guidance_scale": 1}, "negative_label has no effect"),
    ],
)
def test_wrong_settings_are_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        sampler(**settings)
