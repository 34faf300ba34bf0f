"""Fingerprints of images: small, gray, blurred, with mean 0 and variance 1, nearly the same for a copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 64
"""Height and width of a fingerprint."""
COARSE = 16
"""Height and width at which all pairs are compared, to find candidates for the exact comparison."""
FLIPS: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "horizontal": ((), (-1,)),
    "all": ((), (-1,), (-2,), (-1, -2)),
}
"""How a copy may be mirrored, as axes to flip; each kind starts with the unflipped image."""

_BINOMIAL = tuple(weight / 256 for weight in (1, 8, 28, 56, 70, 56, 28, 8, 1))
_FAINT = 0.01  # of the image range: a smaller standard deviation is noise, which must not be amplified


class Prints(NamedTuple):
    """Fingerprints of a set of images.

    Attributes:
        fine: (N, 64, 64), half precision.
        features: (N, F, D), the features of each image in each of F orientations; None without an embedding.
        patients: (N,), one number per patient; images of one patient are not compared with each other.
    """

    fine: Tensor
    features: Tensor | None
    patients: Tensor

    def select(self, indices: Tensor | Sequence[int]) -> Prints:
        """Return the fingerprints at some indices."""
        places = torch.as_tensor(indices, dtype=torch.long)
        features = None if self.features is None else self.features[places]
        return Prints(self.fine[places], features, self.patients[places])


def fingerprint(images: Tensor) -> Tensor:
    """Reduce images to fingerprints, which change little with noise, blur, brightness and contrast.

    Args:
        images: (B, C, H, W) in [0, 1]; images that are not square are stretched.

    Returns:
        (B, 64, 64), half precision, of mean 0 and variance 1; zeros for an image of one colour.

    Raises:
        ValueError: for another shape, or values that are not finite.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {tuple(images.shape)}: give (B, C, H, W) with 1 or 3 channels")
    if not bool(images.isfinite().all()):
        raise ValueError("images have values that are not finite: check the files, or the run that sampled them")
    gray = images.float().mean(dim=1, keepdim=True)
    if gray.shape[-2:] != (SIDE, SIDE):
        gray = F.interpolate(gray, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    weights = torch.tensor(_BINOMIAL, device=gray.device)
    padded = F.pad(gray, (len(_BINOMIAL) // 2,) * 4, mode="replicate")
    blurred = F.conv2d(padded, (weights[:, None] * weights)[None, None])[:, 0]
    centred = blurred - blurred.mean(dim=(1, 2), keepdim=True)
    spread = centred.square().mean(dim=(1, 2), keepdim=True).sqrt()
    return (centred / spread.clamp(min=_FAINT)).half()


def each_once(prints: Prints) -> Tensor:
    """Return the indices of images whose fingerprint has not occurred before."""
    first: dict[bytes, int] = {}
    for index, fine in enumerate(prints.fine):
        first.setdefault(fine.numpy().tobytes(), index)
    return torch.tensor(sorted(first.values()), dtype=torch.long)


def coarse(fine: Tensor) -> Tensor:
    """Average fingerprints (N, 64, 64) to vectors (N, 256)."""
    return F.avg_pool2d(fine.float()[:, None], SIDE // COARSE).flatten(1)


def flipped(images: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Flip images (..., H, W) along axes."""
    return images.flip(axes) if axes else images
