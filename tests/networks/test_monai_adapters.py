import pytest
import torch
from monai.networks.nets import VQVAE, AutoencoderKL, DiffusionModelUNet
from torch import nn

from medfusion_monai.losses.adversarial import AdversarialLoss
from medfusion_monai.losses.reconstruction import ReconstructionLoss
from medfusion_monai.networks.discriminator import PatchDiscriminator
from medfusion_monai.networks.monai_adapters import MonaiAutoencoder, MonaiUNet
from medfusion_monai.networks.unet import NO_LABEL
from medfusion_monai.training.latent_statistics import measure_latent_statistics

LABELS = torch.tensor([0, 1, NO_LABEL])


def autoencoder_kl(channels=(8, 8, 16), **settings):
    settings = {"in_channels": 1, "out_channels": 1, "latent_channels": 4, "norm_num_groups": 8} | settings
    levels = {"channels": channels, "attention_levels": [False] * len(channels), "num_res_blocks": 1}
    return AutoencoderKL(spatial_dims=2, **levels, **settings)


def vqvae():
    halving = {"downsample_parameters": ((2, 4, 1, 1),) * 2, "upsample_parameters": ((2, 4, 1, 1, 0),) * 2}
    return VQVAE(2, 1, 1, channels=(8, 8), num_res_channels=(8, 8), embedding_dim=4, num_embeddings=8, **halving)


def diffusion_unet(num_class_embeds=3):
    levels = {"channels": (16, 32), "attention_levels": (False, True), "num_res_blocks": 1, "num_head_channels": 16}
    sizes = {"in_channels": 4, "out_channels": 4, "norm_num_groups": 8, "num_class_embeds": num_class_embeds}
    return DiffusionModelUNet(spatial_dims=2, **levels, **sizes)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return autoencoder_kl().eval()


@pytest.fixture
def autoencoder(network):
    return MonaiAutoencoder(network, in_channels=1, latent_channels=4, downsampling_factor=4).eval()


@pytest.fixture
def unet():
    torch.manual_seed(0)
    network = diffusion_unet()
    for weight in network.parameters():  # many start at zero and would hide every difference
        weight.data += 0.1 * torch.randn(weight.shape)
    return MonaiUNet(network, num_classes=2).eval()


@torch.no_grad()
def test_posterior_is_that_of_the_network(network, autoencoder):
    image = torch.randn(2, 1, 16, 24)
    mean, std = network.encode(image)
    posterior = autoencoder.encode(image)
    assert torch.equal(posterior.mean, mean)
    torch.testing.assert_close((0.5 * posterior.logvar).exp(), std)


def test_gradients_stay_finite_where_the_deviation_is_zero(network, autoencoder):
    nn.init.zeros_(network.quant_conv_log_sigma.conv.weight)
    nn.init.constant_(network.quant_conv_log_sigma.conv.bias, -1000.0)
    posterior = autoencoder.encode(torch.randn(1, 1, 16, 16))
    assert posterior.logvar.max() < -29
    posterior.kl().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@torch.no_grad()
def test_reconstruction_is_that_of_the_network(network, autoencoder):
    image = torch.randn(2, 1, 16, 24)
    assert torch.equal(autoencoder.reconstruct(image), network.reconstruct(image))


@torch.no_grad()
def test_training_output_is_decoded_from_the_given_noise_and_has_no_half_resolution(network, autoencoder):
    image, noise = torch.randn(2, 1, 16, 16), torch.randn(2, 4, 4, 4)
    mean, std = network.encode(image)
    output = autoencoder(image, noise=noise)
    torch.testing.assert_close(output.reconstruction, network.decode(mean + std * noise), rtol=1e-4, atol=1e-5)
    assert output.reconstruction_low is None


@torch.no_grad()
def test_measured_latents_have_unit_variance_and_travel_with_the_weights(autoencoder):
    images = torch.rand(64, 1, 16, 16)
    autoencoder.set_latent_statistics(*measure_latent_statistics(autoencoder, [{"image": images}]))
    other = MonaiAutoencoder(autoencoder_kl(), in_channels=1, latent_channels=4, downsampling_factor=4).eval()
    other.load_state_dict(autoencoder.state_dict())
    latents = other.encode_stage_2_inputs(images * 2 - 1)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(4), rtol=0.1, atol=0)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), rtol=0, atol=0.1)
    raw = other.denormalize(latents)
    assert torch.equal(other.decode_stage_2_outputs(latents), other.network.decode(raw))


@pytest.mark.parametrize("settings", [{}, {"use_convtranspose": True}, {"with_decoder_nonlocal_attn": False}])
def test_output_layer_is_the_weight_that_writes_the_image(settings):
    network = autoencoder_kl(**settings)
    autoencoder = MonaiAutoencoder(network, in_channels=1, latent_channels=4, downsampling_factor=4)
    (layer,) = autoencoder.output_layers
    assert layer is network.decoder.blocks[-1].conv.weight


def test_both_losses_take_an_output_without_half_resolution(autoencoder):
    image = torch.rand(2, 1, 32, 32) * 2 - 1
    output = autoencoder(image)
    terms = ReconstructionLoss(perceptual_weight=0.0)(output, image)
    assert set(terms) == {"loss", "pixel", "ssim", "kl"}
    adversarial = AdversarialLoss([PatchDiscriminator(1, (8, 8, 16)) for _ in range(2)], start_step=0)
    assert adversarial.generator_loss(output, [terms["loss"]], autoencoder.output_layers)["adversarial_weight"] > 0
    adversarial.discriminator_loss(output, image).backward()
    used, rests = ([p.grad is not None for p in judge.parameters()] for judge in adversarial.discriminators)
    assert all(used)
    assert not any(rests)


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        (nn.Identity(), {}, "Identity has no encode, decode, decoder"),
        (autoencoder_kl(), {"in_channels": 3}, "in_channels=3"),
        (autoencoder_kl(), {"latent_channels": 8}, "latent_channels=8"),
        (autoencoder_kl(), {"downsampling_factor": 8}, r"image of 16x16 pixels to latents \(4, 4, 4\)"),
        (autoencoder_kl(out_channels=3), {}, "out_channels=3"),
        (vqvae(), {}, "AutoencoderKL"),
    ],
)
def test_network_that_does_not_fit_is_refused_when_it_is_built(network, settings, message):
    settings = {"in_channels": 1, "latent_channels": 4, "downsampling_factor": 4} | settings
    with pytest.raises(ValueError, match=message):
        MonaiAutoencoder(network, **settings)


@pytest.mark.parametrize(("shape", "message"), [((1, 1, 18, 16), "not divisible by 4"), ((1, 3, 16, 16), "3 channels")])
def test_image_that_does_not_fit_is_refused(shape, message, autoencoder):
    with pytest.raises(ValueError, match=message):
        autoencoder.encode(torch.zeros(shape))


@torch.no_grad()
def test_labels_reach_the_network_and_no_label_is_its_last_class(unet):
    latents, timesteps = torch.randn(3, 4, 4, 4), torch.tensor([5, 500, 999])
    expected = unet.network(latents, timesteps, class_labels=torch.tensor([0, 1, 2]))
    assert torch.equal(unet(latents, timesteps, class_labels=LABELS), expected)
    others = unet.network(latents, timesteps, class_labels=torch.tensor([1, 2, 0]))
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(expected, others, strict=True))


@torch.no_grad()
def test_no_labels_mean_no_label_for_each_sample(unet):
    latents, timesteps = torch.randn(3, 4, 4, 4), torch.tensor([5, 500, 999])
    expected = unet(latents, timesteps, class_labels=torch.full((3,), NO_LABEL))
    assert torch.equal(unet(latents, timesteps), expected)


@torch.no_grad()
def test_odd_latents_are_padded_by_their_edge_and_the_estimate_is_cut(unet):
    latents, timesteps = torch.randn(2, 4, 3, 5), torch.tensor([7, 300])
    padded = torch.cat([latents, latents[..., -1:]], dim=-1)
    padded = torch.cat([padded, padded[..., -1:, :]], dim=-2)
    assert torch.equal(unet(latents, timesteps), unet(padded, timesteps)[..., :3, :5])


def test_network_with_another_number_of_classes_is_refused():
    with pytest.raises(ValueError, match="num_class_embeds=2, but num_classes=2 requires 3"):
        MonaiUNet(diffusion_unet(num_class_embeds=2), num_classes=2)


@torch.no_grad()
def test_unconditional_network_takes_no_labels():
    unet = MonaiUNet(diffusion_unet(num_class_embeds=None), num_classes=None)
    assert unet(torch.randn(3, 4, 4, 4), torch.zeros(3)).shape == (3, 4, 4, 4)
    with pytest.raises(ValueError, match="num_classes=None"):
        unet(torch.randn(3, 4, 4, 4), torch.zeros(3), class_labels=LABELS)
