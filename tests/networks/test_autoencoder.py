import pytest
import torch
from torch import nn

from medfusion_monai.networks.autoencoder import Autoencoder, DiagonalGaussian
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.weights.published import load_published


@pytest.fixture
def small() -> Autoencoder:
    torch.manual_seed(0)
    network = Autoencoder(in_channels=1, latent_channels=4, channels=(8, 8, 16, 16))
    nn.init.normal_(network.conv_out.weight)
    return network.eval()


@pytest.mark.parametrize("name", ["autoencoder_gray_4ch", "autoencoder_rgb_8ch"])
@torch.no_grad()
def test_published_autoencoder_is_reproduced(name, vectors, published_state, relative_error):
    tensors, _ = vectors(name)
    network = load_published(published_state(name))
    posterior = network.encode(tensors["x"])
    image, low = network.decode_with_low(tensors["mean"])
    assert relative_error(posterior.mean, tensors["mean"]) < 1e-5
    assert relative_error(posterior.logvar, tensors["logvar"]) < 1e-5
    assert relative_error(posterior.kl(), tensors["kl"]) < 1e-5
    assert relative_error(image, tensors["recon"]) < 1e-5
    assert relative_error(low, tensors["recon_low_0"]) < 1e-5


def test_published_widths_have_13_37_million_weights():
    with torch.device("meta"):
        network = Autoencoder(in_channels=3)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == 13.37


def test_kl_has_its_closed_form_and_is_averaged_over_the_batch_only():
    torch.manual_seed(0)
    posterior = DiagonalGaussian(torch.randn(3, 8, 5, 2))
    normal = torch.distributions.Normal(posterior.mean, (0.5 * posterior.logvar).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(dim=(1, 2, 3)).mean()
    torch.testing.assert_close(posterior.kl(), expected)
    assert DiagonalGaussian(torch.zeros(2, 4, 3, 3)).kl() == 0


def test_posterior_samples_have_its_mean_and_deviation():
    posterior = DiagonalGaussian(torch.tensor([2.0, -1.0]).reshape(1, 2, 1, 1))
    assert posterior.sample(torch.zeros(1, 1, 1, 1)).item() == 2.0
    assert posterior.sample(torch.ones(1, 1, 1, 1)).item() == pytest.approx(2.0 + 0.6065307, abs=1e-6)
    assert posterior.mode().item() == 2.0


def test_log_variance_is_clamped():
    assert DiagonalGaussian(torch.tensor([0.0, 99.0]).reshape(1, 2, 1, 1)).logvar.item() == 20.0
    assert DiagonalGaussian(torch.tensor([0.0, -99.0]).reshape(1, 2, 1, 1)).logvar.item() == -30.0


def test_outputs_start_at_zero():
    network = Autoencoder(latent_channels=4, channels=(8, 16))
    output = network(torch.randn(2, 1, 16, 16))
    assert torch.count_nonzero(output.reconstruction) == 0
    assert torch.count_nonzero(output.reconstruction_low) == 0


def test_low_resolution_head_is_left_out_without_deep_supervision():
    network = Autoencoder(latent_channels=4, channels=(8, 16), deep_supervision=False)
    assert network(torch.randn(1, 1, 16, 16)).reconstruction_low is None
    assert not [name for name in network.state_dict() if "low" in name]


@torch.no_grad()
def test_shapes_follow_the_image(small):
    output = small(torch.randn(2, 1, 24, 40))
    assert output.reconstruction.shape == (2, 1, 24, 40)
    assert output.reconstruction_low.shape == (2, 1, 12, 20)
    assert output.posterior.mean.shape == (2, 4, 3, 5)


@torch.no_grad()
def test_normalized_latents_have_unit_variance_and_come_back(small):
    latents = torch.randn(64, 4, 6, 6) * torch.tensor([0.1, 1.0, 5.0, 20.0])[:, None, None] + 3.0
    small.set_latent_statistics(latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3)))
    normalized = small.normalize(latents)
    torch.testing.assert_close(normalized.std(dim=(0, 2, 3)), torch.ones(4), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(normalized.mean(dim=(0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(small.denormalize(normalized), latents, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_second_stage_sees_normalized_latents_and_the_decoder_raw_ones(small):
    image, noise = torch.randn(2, 1, 16, 16), torch.randn(2, 4, 2, 2)
    small.set_latent_statistics(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.5, 2.0, 4.0, 8.0]))
    latents = small.encode_stage_2_inputs(image, noise)
    raw = small.encode(image).sample(noise)
    torch.testing.assert_close(latents[:, 1], (raw[:, 1] - 2.0) / 2.0)
    torch.testing.assert_close(small.decode_stage_2_outputs(latents), small.decode(raw), rtol=1e-4, atol=1e-4)


def test_latent_statistics_travel_with_the_weights(small):
    small.set_latent_statistics(torch.full((4,), 7.0), torch.full((4,), 3.0))
    other = Autoencoder(in_channels=1, latent_channels=4, channels=(8, 8, 16, 16))
    other.load_state_dict(small.state_dict())
    assert other.latent_mean.tolist() == [7.0] * 4
    assert other.latent_std.tolist() == [3.0] * 4


@torch.no_grad()
def test_medfusion_reconstructs_from_the_most_likely_latents(small):
    image = torch.randn(1, 1, 16, 16)
    expected = small.decode(small.encode(image).mean)
    assert torch.equal(Medfusion(small, nn.Identity())(image), expected)
    assert torch.count_nonzero(expected) > 0


def test_output_layers_are_the_weights_that_write_the_images(small):
    full, low = small.output_layers
    assert full is small.conv_out.weight
    assert low is small.conv_out_low.weight
    (only,) = (alone := Autoencoder(channels=(8, 16), deep_supervision=False)).output_layers
    assert only is alone.conv_out.weight


@pytest.mark.parametrize("size", [(20, 16), (16, 12)])
def test_size_that_is_not_divisible_by_8_is_refused(small, size):
    with pytest.raises(ValueError, match="not divisible by 8"):
        small.encode(torch.zeros(1, 1, *size))


def test_wrong_image_channels_are_refused(small):
    with pytest.raises(ValueError, match="image has 3 channels, but the autoencoder was built for 1"):
        small.encode(torch.zeros(1, 3, 16, 16))


def test_norm_groups_that_do_not_divide_a_width_are_refused():
    with pytest.raises(ValueError, match=r"\[12\].*norm_groups=8"):
        Autoencoder(channels=(8, 12))


def test_a_single_level_is_refused():
    with pytest.raises(ValueError, match="at least two levels"):
        Autoencoder(channels=(8,))
