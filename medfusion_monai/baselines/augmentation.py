"""Differentiable augmentation of what the discriminator sees, with a probability that rises (Karras et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from medfusion_monai.baselines.relativistic import check_ramp, ramp
from medfusion_monai.networks.described import Described, describable

KINDS = ("flip", "shift", "cutout", "brightness")
DRAWS = 11
"""Random numbers per image: whether each of the kinds is applied, and by how much."""
SHIFT = 0.125
"""Largest shift, as a share of a side."""
CUT = 0.5
"""Side of the square that is cut out, as a share of the image's."""
BRIGHTNESS = 0.2
"""Largest change of brightness, of images in [-1, 1]."""


@describable
class Augmentation(Described, nn.Module):
    """Flips, shifts, cuts a square out of, or changes brightness and contrast of real and generated images alike.

    Each kind is applied to an image with the same probability. As long as that stays well below one, the generator
    does not learn to draw augmented images.

    Args:
        kinds: some of ``flip`` (left and right), ``shift``, ``cutout`` and ``brightness``.
        probability: at the beginning and from the end of the ramp on.

    Raises:
        ValueError: for an unknown kind, or probabilities outside [0, 1].
    """

    def __init__(self, kinds: Sequence[str] = KINDS[1:], probability: Sequence[float] = (0.0, 0.3)) -> None:
        super().__init__()
        if not isinstance(kinds, list | tuple) or set(kinds) - set(KINDS):
            raise ValueError(f"gan_augmentations must be a list of some of {', '.join(KINDS)}, received {kinds!r}")
        check_ramp(most=1.0, gan_augmentation_probability=probability)
        self.kinds, self.probability = tuple(kinds), probability

    def forward(self, images: Tensor, draws: Tensor, progress: float = 1.0) -> Tensor:
        """Augment images (B, C, H, W) in [-1, 1].

        Args:
            images: not changed.
            draws: (B, DRAWS) uniform numbers in [0, 1), see ``draw``.
            progress: along the ramp, from 0 to 1.
        """
        probability = ramp(self.probability, progress)
        if not self.kinds or not probability:
            return images
        applied = {kind: (draws[:, index] < probability) & (kind in self.kinds) for index, kind in enumerate(KINDS)}
        amounts = draws[:, len(KINDS) :]
        images = _moved(images, applied["flip"] & (amounts[:, 0] < 0.5), applied["shift"], amounts[:, 1:3])
        images = images * _outside_square(images, applied["cutout"], amounts[:, 3:5])
        return _brightened(images, applied["brightness"], amounts[:, 5:7])


def draw(sources: Sequence[np.random.Generator]) -> Tensor:
    """Draw the random numbers (B, DRAWS) of an augmentation, each image's from its own generator."""
    return torch.from_numpy(np.stack([source.random(DRAWS, dtype=np.float32) for source in sources]))


def _moved(images: Tensor, flipped: Tensor, shifted: Tensor, amounts: Tensor) -> Tensor:
    """Flip and shift; the border is repeated. By indexing, whose second derivative exists, unlike grid_sample's."""
    height, width = images.shape[-2:]
    rows, columns = (torch.arange(side, device=images.device)[None] for side in (height, width))
    down, right = ((2.0 * amounts - 1.0) * shifted[:, None] * SHIFT).unbind(1)
    rows = (rows - (down * height).round().long()[:, None]).clamp(0, height - 1)
    columns = (columns - (right * width).round().long()[:, None]).clamp(0, width - 1)
    columns = torch.where(flipped[:, None], width - 1 - columns, columns)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return images.movedim(1, -1)[batch, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def _outside_square(images: Tensor, cut: Tensor, centres: Tensor) -> Tensor:
    """Return (B, 1, H, W): 0 within the squares that are cut out, 1 elsewhere."""
    inside = []
    for side, centre in zip(images.shape[-2:], centres.unbind(1), strict=True):
        places = (torch.arange(side, device=images.device)[None] + 0.5) / side
        inside.append((places - centre[:, None]).abs() < 0.5 * CUT)
    square = inside[0][:, :, None] & inside[1][:, None, :] & cut[:, None, None]
    return (~square[:, None]).to(images.dtype)


def _brightened(images: Tensor, changed: Tensor, amounts: Tensor) -> Tensor:
    """Add to the values, and multiply the contrast by up to the square root of two."""
    amounts = (2.0 * amounts - 1.0) * changed[:, None]
    brightness, contrast = amounts[:, :, None, None, None].unbind(1)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    factor = 2.0 ** (0.5 * contrast)
    return images * factor + mean * (1.0 - factor) + BRIGHTNESS * brightness
