"""Patch discriminator of the adversarial phase."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from medfusion_monai.networks.autoencoder import check_widths
from medfusion_monai.networks.blocks import zero_init
from medfusion_monai.networks.described import Described, describable


@describable
class PatchDiscriminator(Described, nn.Module):
    """Classifies patches of an image: convolution, group norm and SiLU per level, then a zero-initialised convolution.

    Args:
        in_channels: image channels.
        channels: widths per level; each level after the first halves height and width.
        norm_groups: groups of the normalisations.

    Raises:
        ValueError: if ``norm_groups`` does not divide a width.
    """

    def __init__(
        self, in_channels: int = 1, channels: Sequence[int] = (64, 128, 256, 512), norm_groups: int = 8
    ) -> None:
        super().__init__()
        check_widths(channels, norm_groups)
        levels = [_level(in_channels, channels[0], 1, norm_groups)]
        levels += [_level(a, b, 2, norm_groups) for a, b in pairwise(channels)]
        self.levels = nn.Sequential(*levels)
        self.conv_out = zero_init(nn.Conv2d(channels[-1], 1, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, 1, H/8, W/8), high where a patch looks real, for images (B, C, H, W) in [-1, 1]."""
        return self.conv_out(self.levels(image))


def _level(in_channels: int, out_channels: int, stride: int, norm_groups: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1),
        nn.GroupNorm(norm_groups, out_channels),
        nn.SiLU(),
    )
