"""What the audit keeps of an image: small, gray, blurred, of mean 0 and variance 1, in which a copy looks alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 64
"""Height and width of a fingerprint."""
COARSE = 16
"""Height and width at which all pairs are compared, to find those that are worth a closer look."""
FLIPS: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "horizontal": ((), (-1,)),
    "all": ((), (-1,), (-2,), (-1, -2)),
}
"""In which ways a copy may be mirrored, as the axes that are turned; every kind begins with the image as it is."""

_BINOMIAL = (0.25, 0.5, 0.25)
_FAINT = 0.01  # of the range of an image: a standard deviation below it is noise that must not be blown up


class Prints(NamedTuple):
    """Fingerprints of a set of images.

    Attributes:
        fine: (N, 64, 64), half precision.
        features: (N, F, D), the features of each image in each of F orientations; None without an embedding.
        patients: (N,), a number a patient; images of one patient are not compared with each other.
    """

    fine: Tensor
    features: Tensor | None
    patients: Tensor

    def select(self, indices: Tensor | Sequence[int]) -> Prints:
        """Return those of some images."""
        places = torch.as_tensor(indices, dtype=torch.long)
        features = None if self.features is None else self.features[places]
        return Prints(self.fine[places], features, self.patients[places])


def fingerprint(images: Tensor) -> Tensor:
    """Reduce images to fingerprints, in which noise, blur, brightness and contrast hardly show.

    Args:
        images: (B, C, H, W) in [0, 1]; sizes that are not square are squeezed.

    Returns:
        (B, 64, 64), half precision, of mean 0 and variance 1; zeros for an image of one colour.

    Raises:
        ValueError: for another shape, or values that are not finite.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {tuple(images.shape)}: give (B, C, H, W) with 1 or 3 channels")
    if not bool(images.isfinite().all()):
        raise ValueError("images have values that are not finite: look at the files, or at what sampled them")
    gray = images.float().mean(dim=1, keepdim=True)
    if gray.shape[-2:] != (SIDE, SIDE):
        gray = F.interpolate(gray, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    weights = torch.tensor(_BINOMIAL, device=gray.device)
    blurred = F.conv2d(F.pad(gray, (1, 1, 1, 1), mode="replicate"), (weights[:, None] * weights)[None, None])[:, 0]
    centred = blurred - blurred.mean(dim=(1, 2), keepdim=True)
    spread = centred.square().mean(dim=(1, 2), keepdim=True).sqrt()
    return (centred / spread.clamp(min=_FAINT)).half()


def each_once(prints: Prints) -> Tensor:
    """Return the places of images whose fingerprint is not that of one before."""
    first: dict[bytes, int] = {}
    for index, fine in enumerate(prints.fine):
        first.setdefault(fine.numpy().tobytes(), index)
    return torch.tensor(sorted(first.values()), dtype=torch.long)


def coarse(fine: Tensor) -> Tensor:
    """Average fingerprints (N, 64, 64) to vectors (N, 256), in which a shift of a pixel or two hardly shows."""
    return F.avg_pool2d(fine.float()[:, None], SIDE // COARSE).flatten(1)


def flipped(images: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Mirror images, whose last two axes are height and width."""
    return images.flip(axes) if axes else images
