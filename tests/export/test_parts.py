import torch

from medfusion_monai.export.parts import Port, multiple, parts_of


def test_mean_and_deviation_of_the_encoder_draw_what_the_autoencoder_draws(network, relative_error):
    encoder = parts_of(network, 2, 1000)[0].module
    image, noise = torch.rand(2, 1, 16, 24), torch.randn(2, 8, 8, 12)
    mean, std = encoder(image)
    expected = network.autoencoder.encode_stage_2_inputs(image * 2 - 1, noise)
    assert relative_error(mean + std * noise, expected) < 1e-5


def test_decoder_undoes_the_encoder_as_the_bundle_reconstructs(network):
    encoder, decoder, _ = (part.module for part in parts_of(network, 2, 1000))
    image = torch.rand(2, 1, 16, 24)
    expected = (network(image * 2 - 1) / 2 + 0.5).clamp(0, 1)
    assert (decoder(encoder(image)[0]) - expected).abs().max() < 1e-5


def test_label_minus_one_is_the_prediction_without_label(network):
    unet = parts_of(network, 2, 1000)[2].module
    latents, timesteps = torch.randn(2, 8, 4, 6), torch.tensor([3, 900])
    assert torch.equal(unet(latents, timesteps, torch.tensor([-1, -1])), network.unet(latents, timesteps))


def test_shapes_are_numbers_or_multiples_of_the_latents_sides():
    assert multiple("8*height") == (8, "height")
    port = Port("image", ("batch", 3, "8*height", "width"), value_range=(0, 1))
    drawn = port.draw({"batch": 2, "height": 4, "width": 5}, torch.Generator().manual_seed(0))
    assert drawn.shape == (2, 3, 32, 5)
    assert 0 <= drawn.min() < 0.1 < 0.9 < drawn.max() < 1


def test_integers_are_drawn_from_the_whole_range_both_ends_included():
    port = Port("class_labels", ("batch",), "int64", (-1, 1))
    assert set(port.draw({"batch": 100}, torch.Generator().manual_seed(0)).tolist()) == {-1, 0, 1}
