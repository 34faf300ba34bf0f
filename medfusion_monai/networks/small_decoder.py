"""A small decoder: images from latents at a fraction of the autoencoder's cost, for CPUs and previews."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfusion_monai.networks.described import Described, describable
from medfusion_monai.runtime.values import check_counts

LIMIT = 3.0
"""Unit-variance latents are squashed smoothly to this range: rare large values then cannot spoil a whole image."""


class PlainBlock(nn.Module):
    """Two 3x3 convolutions with a skip and no normalisation, which costs more than the convolutions of narrow levels.

    Args:
        channels: of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        return F.relu(x + self.second(F.relu(self.first(x))))


@describable
class SmallDecoder(Described, nn.Module):
    """Maps unit-variance latents to images as the autoencoder's decoder does, whose outputs it is trained to imitate.

    No level works at full resolution: the last convolution predicts 2x2 pixels at once.

    Args:
        latent_channels: channels of the latents.
        out_channels: image channels, 1 (gray) or 3 (RGB).
        channels: widths per level, from the latents' resolution up; each level after the first doubles height and
            width, and so does the output.
        num_blocks: residual blocks per level.

    Raises:
        ValueError: for widths or numbers that are not positive, or lists of different lengths.
    """

    sha256: str | None = None
    """Of the file that the weights were read from, for manifests."""

    def __init__(
        self,
        latent_channels: int = 8,
        out_channels: int = 1,
        channels: Sequence[int] = (64, 32, 16),
        num_blocks: Sequence[int] = (3, 2, 1),
    ) -> None:
        super().__init__()
        if not channels or len(channels) != len(num_blocks):
            raise ValueError(
                f"channels {list(channels)} and num_blocks {list(num_blocks)} must be lists of the same length, one "
                "entry per level"
            )
        for width, count in zip(channels, num_blocks, strict=True):
            check_counts(channels=width, num_blocks=count)
        self.latent_channels, self.out_channels = latent_channels, out_channels
        self.downsampling_factor = 2 ** len(channels)
        widths = [latent_channels, *channels]
        self.conv_in = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(widths))
        self.blocks = nn.ModuleList(
            nn.Sequential(*(PlainBlock(width) for _ in range(count)))
            for width, count in zip(channels, num_blocks, strict=True)
        )
        self.conv_out = nn.Conv2d(channels[-1], 4 * out_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Map unit-variance latents (B, latent_channels, h, w) to images (B, C, H, W) in about [-1, 1]."""
        x = LIMIT * torch.tanh(latents / LIMIT)
        for level, (conv, blocks) in enumerate(zip(self.conv_in, self.blocks, strict=True)):
            if level:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = blocks(F.relu(conv(x)))
        return F.pixel_shuffle(self.conv_out(x), 2)
