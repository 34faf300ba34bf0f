"""Variants of training images that are encoded in advance: flips as the bundles', and small shifts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from medfusion_monai.data.training.flips import FLIPS

PLAIN = "plain"
PIXELS = 3
SHIFTS: dict[str, tuple[int, int]] = {
    "up": (-PIXELS, 0),
    "down": (PIXELS, 0),
    "left": (0, -PIXELS),
    "right": (0, PIXELS),
}
"""Rows and columns by which an image moves; less than a position of the latents, which is 8 pixels wide."""


def variants_of(augmentation: str, flips: Sequence[str]) -> list[str]:
    """Return the variants of each training image, the unchanged one first.

    Args:
        augmentation: of an arm.
        flips: ``latent_flips`` of the bundle.
    """
    return [PLAIN, *{"bundle": flips, "none": (), "shifts": SHIFTS}[augmentation]]


def vary(images: Tensor, variant: str) -> Tensor:
    """Return a variant of images (N, C, H, W); a shift repeats the edge that it uncovers."""
    if variant == PLAIN:
        return images
    if variant in FLIPS:
        return images.flip(FLIPS[variant])
    down, right = SHIFTS[variant]
    height, width = images.shape[-2:]
    padded = F.pad(images, (PIXELS,) * 4, mode="replicate")
    return padded[..., PIXELS - down : PIXELS - down + height, PIXELS - right : PIXELS - right + width]
