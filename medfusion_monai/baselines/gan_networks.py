"""Generator and discriminator of the GAN: plain residual networks without normalisation.

After Huang et al. 2024, "The GAN is dead; long live the GAN!" (arXiv:2501.05441): residual blocks initialised as in
Fixup (Zhang et al. 2019), bilinear resampling, leaky ReLU, a learned map that noise and class modulate at the start of
the generator, and a projection on the class (Miyato and Koyama 2018) at the end of the discriminator. Blocks are two
3x3 convolutions; the paper's are grouped inverted bottlenecks, whose second derivatives are slow on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfusion_monai.networks.blocks import zero_init
from medfusion_monai.networks.described import Described, describable
from medfusion_monai.runtime.values import check_counts, is_whole

SLOPE = 0.2
SMALLEST = 4
"""Shortest side of the smallest feature map."""


def gan_widths(image_size: Sequence[int], unet_channels: Sequence[int]) -> list[int]:
    """Return channels per level, the image's first, in proportion to a UNet's.

    A quarter of the UNet's first width, doubled at each level, up to three quarters of its last; levels halve the sides
    until the shorter one is 4 to 7 pixels. For a UNet of the published widths these are 64 to 768; the paper has 96 to
    768 for 256x256 pixels.

    Args:
        image_size: height and width.
        unet_channels: widths of the UNet that the GAN is compared with.
    """
    levels = 1 + max(0, int(math.log2(max(1, min(image_size) // SMALLEST))))
    first, most = max(8, unet_channels[0] // 4), max(8, 3 * unet_channels[-1] // 4)
    return [min(most, first * 2**level) for level in range(levels)]


class PlainBlock(nn.Module):
    """Adds two 3x3 convolutions, each after a leaky ReLU, to the input; the second starts at zero.

    Args:
        channels: of input and output.
        num_blocks: blocks of the network, by which the first convolution is scaled (Fixup, rule 2: its branch has two
            layers, so by the inverse square root).
    """

    def __init__(self, channels: int, num_blocks: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = zero_init(nn.Conv2d(channels, channels, 3, padding=1))
        nn.init.kaiming_normal_(self.first.weight, SLOPE)
        nn.init.zeros_(self.first.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.first.weight.mul_(num_blocks**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        return x + self.second(F.leaky_relu(self.first(F.leaky_relu(x, SLOPE)), SLOPE))


@describable
class GanGenerator(Described, nn.Module):
    """Maps noise and a class to an image.

    Args:
        image_size: height and width; multiples of 2 ** (levels - 1).
        channels: width per level, the image's first.
        image_channels: 1 (gray) or 3 (RGB).
        num_classes: number of labels.
        noise_channels: length of the noise.
        num_blocks: residual blocks per level.

    Raises:
        ValueError: for a number that is not whole and positive, or sides that the levels do not divide.
    """

    def __init__(
        self,
        image_size: Sequence[int] = (64, 64),
        channels: Sequence[int] = (64, 128, 256, 512, 768),
        image_channels: int = 1,
        num_classes: int = 2,
        noise_channels: int = 64,
        num_blocks: int = 1,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, noise_channels=noise_channels, num_blocks=num_blocks)
        height, width = smallest_map(image_size, channels)
        self.image_channels, self.noise_channels, self.image_size = image_channels, noise_channels, list(image_size)
        widest, total = channels[-1], num_blocks * len(channels)
        self.class_embedding = nn.Embedding(num_classes, noise_channels)
        self.basis = nn.Parameter(torch.randn(widest, height, width))
        self.modulation = nn.Linear(2 * noise_channels, widest)
        self.levels = nn.ModuleList(_blocks(width, num_blocks, total) for width in reversed(channels))
        self.transitions = nn.ModuleList(_conv1x1(wide, narrow) for narrow, wide in reversed(list(pairwise(channels))))
        self.conv_out = _conv1x1(channels[0], image_channels)

    def forward(self, noise: Tensor, class_labels: Tensor) -> Tensor:
        """Map standard normal noise (B, noise_channels) and labels (B,) to images (B, C, H, W), about in [-1, 1]."""
        code = torch.cat([noise, self.class_embedding(class_labels)], dim=1)
        x = self.basis * self.modulation(code)[:, :, None, None]
        x = self.levels[0](x)
        for transition, level in zip(self.transitions, self.levels[1:], strict=True):
            x = level(F.interpolate(transition(x), scale_factor=2.0, mode="bilinear", align_corners=False))
        return self.conv_out(F.leaky_relu(x, SLOPE))


@describable
class GanDiscriminator(Described, nn.Module):
    """Judges images of given classes: the generator's levels in reverse order.

    Args:
        image_size: as the generator's.
        channels: width per level, the image's first.
        image_channels: 1 (gray) or 3 (RGB).
        num_classes: number of labels.
        num_blocks: residual blocks per level.

    Raises:
        ValueError: as ``GanGenerator``.
    """

    def __init__(
        self,
        image_size: Sequence[int] = (64, 64),
        channels: Sequence[int] = (64, 128, 256, 512, 768),
        image_channels: int = 1,
        num_classes: int = 2,
        num_blocks: int = 1,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, num_blocks=num_blocks)
        smallest, widest = smallest_map(image_size, channels), channels[-1]
        self.conv_in = _conv1x1(image_channels, channels[0])
        self.levels = nn.ModuleList(_blocks(width, num_blocks, num_blocks * len(channels)) for width in channels)
        self.transitions = nn.ModuleList(_conv1x1(narrow, wide) for narrow, wide in pairwise(channels))
        self.pool = nn.Conv2d(widest, widest, smallest, groups=widest)
        self.features = nn.Linear(widest, widest)
        self.class_embedding = nn.Embedding(num_classes, widest)

    def forward(self, images: Tensor, class_labels: Tensor) -> Tensor:
        """Return logits (B,), high where an image (B, C, H, W) looks like a real one of its label (B,)."""
        x = self.levels[0](self.conv_in(images))
        for transition, level in zip(self.transitions, self.levels[1:], strict=True):
            x = level(F.avg_pool2d(transition(x), 2))
        x = self.features(self.pool(F.leaky_relu(x, SLOPE)).flatten(1))
        return (x * self.class_embedding(class_labels)).sum(1) * x.shape[1] ** -0.5


def smallest_map(image_size: Sequence[int], channels: Sequence[int]) -> tuple[int, int]:
    """Return height and width of the smallest feature map.

    Raises:
        ValueError: for widths that are not whole and positive, or sides that the levels do not divide.
    """
    if not channels or not all(is_whole(width) and width > 0 for width in channels):
        raise ValueError(f"gan_channels must be whole numbers of at least 1, received {list(channels)}")
    factor = 2 ** (len(channels) - 1)
    if any(side % factor or side < factor for side in image_size):
        raise ValueError(
            f"image_size {list(image_size)} must be multiples of {factor}, as gan_channels has {len(channels)} levels: "
            "choose another image_size or fewer levels"
        )
    return image_size[0] // factor, image_size[1] // factor


def _blocks(channels: int, count: int, total: int) -> nn.Sequential:
    return nn.Sequential(*(PlainBlock(channels, total) for _ in range(count)))


def _conv1x1(in_channels: int, out_channels: int) -> nn.Module:
    """Change the channels; the variance stays."""
    if in_channels == out_channels:
        return nn.Identity()
    conv = nn.Conv2d(in_channels, out_channels, 1)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
    return conv
