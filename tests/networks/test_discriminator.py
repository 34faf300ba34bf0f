import pytest
import torch
from torch import nn

from medfusion_monai.networks.discriminator import PatchDiscriminator


def test_logits_are_8_times_smaller_than_the_image():
    discriminator = PatchDiscriminator(in_channels=3, channels=(8, 8, 16, 16))
    assert discriminator(torch.randn(2, 3, 32, 48)).shape == (2, 1, 4, 6)


def test_logits_start_at_zero():
    discriminator = PatchDiscriminator(channels=(8, 8, 16, 16))
    assert torch.count_nonzero(discriminator(torch.randn(2, 1, 16, 16))) == 0


def test_logit_depends_on_the_patch_below_it():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(channels=(8, 8))
    nn.init.normal_(discriminator.conv_out.weight)
    image = torch.randn(1, 1, 32, 32, requires_grad=True)
    for level in discriminator.levels:
        level[1] = nn.Identity()  # normalisation looks at the whole image
    discriminator(image)[0, 0, 0, 0].backward()
    assert torch.count_nonzero(image.grad[..., :4, :4]) > 0
    assert torch.count_nonzero(image.grad[..., 8:, 8:]) == 0


def test_norm_groups_that_do_not_divide_a_width_are_refused():
    with pytest.raises(ValueError, match="norm_groups=8"):
        PatchDiscriminator(channels=(8, 12))
