import pytest
import torch

from medfusion_monai.networks.described import build, describe
from medfusion_monai.networks.small_decoder import SmallDecoder


@pytest.mark.parametrize(("channels", "blocks", "factor"), [([64, 32, 16], [3, 2, 1], 8), ([8, 4], [1, 2], 4)])
def test_image_has_the_channels_and_the_size_of_the_autoencoders(channels, blocks, factor):
    decoder = SmallDecoder(8, 3, channels, blocks)
    assert decoder.downsampling_factor == factor
    assert decoder(torch.randn(2, 8, 3, 5)).shape == (2, 3, 3 * factor, 5 * factor)


def test_default_has_at_most_two_million_weights():
    assert sum(weight.numel() for weight in SmallDecoder().parameters()) == 291540


def test_large_latents_are_squashed():
    decoder, latents = SmallDecoder(8, 1, [4], [1]), torch.full((1, 8, 4, 4), 50.0)
    torch.testing.assert_close(decoder(latents), decoder(2.0 * latents))
    assert not torch.allclose(decoder(0.01 * latents), decoder(0.02 * latents))


def test_description_builds_the_same_network():
    decoder = SmallDecoder(4, 3, [8, 4], [1, 2])
    assert str(build(describe(decoder))) == str(decoder)


@pytest.mark.parametrize(
    ("channels", "blocks", "said"),
    [
        ([8, 4], [1], "must be lists of the same length"),
        ([], [], "must be lists of the same length"),
        ([8, 0], [1, 1], "channels must be a whole number of at least 1, received 0"),
        ([8], [0], "num_blocks must be a whole number of at least 1, received 0"),
    ],
)
def test_invalid_sizes_are_refused(channels, blocks, said):
    with pytest.raises(ValueError, match=said):
        SmallDecoder(8, 1, channels, blocks)
