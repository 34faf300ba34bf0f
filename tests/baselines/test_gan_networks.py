import pytest
import torch

from medfusion_monai.baselines.gan_networks import GanDiscriminator, GanGenerator, PlainBlock, gan_widths
from medfusion_monai.networks.described import build, describe


@pytest.mark.parametrize("side", [64, 128, 256])
@pytest.mark.parametrize("image_channels", [1, 3])
def test_images_of_three_sizes_gray_and_in_colour_are_drawn_and_judged(side, image_channels):
    channels = [min(8, width) for width in gan_widths([side, side], [16, 16])]
    common = {"image_size": [side, side], "channels": channels, "image_channels": image_channels, "num_classes": 3}
    images = GanGenerator(**common, noise_channels=4)(torch.randn(2, 4), torch.tensor([0, 2]))
    assert images.shape == (2, image_channels, side, side)
    assert GanDiscriminator(**common)(images, torch.tensor([0, 2])).shape == (2,)


def test_images_may_be_wider_than_high():
    common = {"image_size": [16, 24], "channels": [8, 8, 8]}
    images = GanGenerator(**common)(torch.randn(1, 64), torch.tensor([1]))
    assert images.shape == (1, 1, 16, 24)
    assert GanDiscriminator(**common)(images, torch.tensor([1])).shape == (1,)


def test_block_starts_as_the_identity():
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(PlainBlock(8, num_blocks=5)(x), x)


def test_variance_of_a_new_generator_does_not_grow_with_its_depth():
    torch.manual_seed(0)
    generator = GanGenerator([64, 64], [32, 32, 32, 32, 32], num_blocks=3)
    images = generator(torch.randn(64, 64), torch.zeros(64, dtype=torch.long))
    assert 0.02 < images.std().item() < 2.0


def test_label_changes_image_and_logit():
    torch.manual_seed(0)
    common = {"image_size": [16, 16], "channels": [8, 8, 8]}
    noise, labels = torch.randn(1, 64).expand(2, 64), torch.tensor([0, 1])
    images = GanGenerator(**common)(noise, labels)
    assert not torch.allclose(images[0], images[1])
    logits = GanDiscriminator(**common)(images[:1].expand(2, -1, -1, -1), labels)
    assert logits[0] != logits[1]


def test_logit_of_an_image_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    discriminator = GanDiscriminator([16, 16], [8, 8, 8])
    images, labels = torch.randn(3, 1, 16, 16), torch.tensor([0, 1, 0])
    torch.testing.assert_close(discriminator(images, labels)[1:2], discriminator(images[1:2], labels[1:2]))


def test_networks_are_built_again_from_their_description():
    generator = GanGenerator([16, 16], [8, 8, 8], image_channels=3, num_classes=4, noise_channels=5, num_blocks=2)
    again = build(describe(generator))
    again.load_state_dict(generator.state_dict())
    noise, labels = torch.randn(2, 5), torch.tensor([0, 3])
    assert torch.equal(again(noise, labels), generator(noise, labels))


@pytest.mark.parametrize(
    ("image_size", "unet_channels", "expected"),
    [
        ([256, 256], [256, 256, 512, 1024], [64, 128, 256, 512, 768, 768, 768]),
        ([128, 128], [64, 96, 128, 192], [16, 32, 64, 128, 144, 144]),
        ([64, 64], [64, 64, 96, 128], [16, 32, 64, 96, 96]),
        ([48, 80], [64, 64, 96, 128], [16, 32, 64, 96]),
    ],
)
def test_widths_follow_those_of_a_unet(image_size, unet_channels, expected):
    assert gan_widths(image_size, unet_channels) == expected


def test_sides_that_the_levels_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"image_size \[60, 64\] must be multiples of 8, as gan_channels has 4 levels"):
        GanGenerator([60, 64], [8, 8, 8, 8])


@pytest.mark.parametrize("channels", [[], [8, 0], [8, 2.5]])
def test_widths_that_are_not_whole_are_refused(channels):
    with pytest.raises(ValueError, match="gan_channels must be whole numbers"):
        GanDiscriminator([16, 16], channels)
