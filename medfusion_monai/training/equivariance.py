"""Scaled and turned latents, which the decoder must map to the image scaled and turned alike.

Latents that follow such changes of the image are smoother, and a UNet learns them faster (EQ-VAE, Kouzelis et al. 2025,
arXiv 2502.09509).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SCALES = (0.5, 0.75, 1.0)


class LatentTransform(NamedTuple):
    """A change of size and orientation, the same for latents and for images.

    Attributes:
        scale: ratio of the new height and width to the old ones, at most 1.
        turns: counterclockwise, by 90 degrees each.
    """

    scale: float
    turns: int

    def __call__(self, latents: Tensor) -> Tensor:
        """Change latents (B, C, h, w); sides are rounded."""
        return self._change(latents, *self._sides(latents))

    def of_images(self, images: Tensor, downsampling: int) -> Tensor:
        """Change images (B, C, H, W) to those that the changed latents must decode to.

        Args:
            images: of the latents.
            downsampling: ratio of image and latent sides.
        """
        height, width = self._sides(images[..., ::downsampling, ::downsampling])
        return self._change(images, height * downsampling, width * downsampling)

    def _sides(self, latents: Tensor) -> tuple[int, int]:
        height, width = latents.shape[-2:]
        return _scaled(height, self.scale), _scaled(width, self.scale)

    def _change(self, values: Tensor, height: int, width: int) -> Tensor:
        if values.shape[-2:] != (height, width):
            values = F.interpolate(values, (height, width), mode="bilinear", antialias=True)
        return torch.rot90(values, self.turns, (-2, -1))


def draw_transform(source: np.random.Generator, probability: float) -> LatentTransform | None:
    """Draw a transform of a step from a generator, or None for none.

    Args:
        source: of the first image of the step.
        probability: of a transform.
    """
    if source.random() >= probability:
        return None
    return LatentTransform(SCALES[source.integers(len(SCALES))], int(source.integers(4)))


def check_equivariance(probability: float, latent_shape: Sequence[int], downsampling: int, ssim_window: int) -> None:
    """Check that the smallest images, at half resolution, hold the window of SSIM.

    Args:
        probability: of a transform.
        latent_shape: channels, height and width.
        downsampling: ratio of image and latent sides.
        ssim_window: of the loss.

    Raises:
        ValueError: if they do not, or the probability is outside [0, 1].
    """
    if not isinstance(probability, int | float) or not 0.0 <= probability <= 1.0:
        raise ValueError(f"equivariance is a share of steps between 0 and 1, received {probability!r}")
    side = min(latent_shape[-2:])
    smallest = _scaled(side, min(SCALES)) * downsampling // 2
    if probability and smallest < ssim_window:
        largest = smallest - 1 + smallest % 2
        raise ValueError(
            f"equivariance {probability:g} scales images of {side * downsampling} pixels down to {smallest} at half "
            f"resolution, where ssim_window {ssim_window} does not fit: set ssim_window to {largest} or less, or "
            "equivariance to 0"
        )


def _scaled(side: int, scale: float) -> int:
    return max(1, round(side * scale))
