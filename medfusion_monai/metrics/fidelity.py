"""How real a set of images is, and how much of the real ones it covers, from features of both."""

from __future__ import annotations

import torch
from torch import Tensor


def improved_precision_recall(real: Tensor, fake: Tensor, k: int = 3, chunk: int = 1024) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, equation 1).

    Precision is the share of generated samples that lie within the manifold of the real ones, recall the share of
    real samples within the manifold of the generated ones. A manifold is the union of balls around all samples,
    each as large as the distance to the sample's k-th nearest neighbour.

    Args:
        real: features (N, D).
        fake: features (M, D).
        k: neighbours; the paper and Medfusion use 3.
        chunk: rows of the distance matrix at a time, which bounds the memory.

    Returns:
        Precision and recall, each in [0, 1].

    Raises:
        ValueError: if a set has no more than ``k`` samples, or the features differ in size.
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D), received {tuple(real.shape)} and {tuple(fake.shape)}")
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"k={k} neighbours need more than {k} samples in each set: {len(real)} real, {len(fake)} fake")
    return _share_inside(fake, real, k, chunk), _share_inside(real, fake, k, chunk)


def _share_inside(samples: Tensor, manifold: Tensor, k: int, chunk: int) -> float:
    """Share of samples that lie in at least one ball of the manifold."""
    # The nearest neighbour of each sample is itself, at distance 0.
    radii = torch.cat([torch.cdist(rows, manifold).kthvalue(k + 1, dim=1).values for rows in manifold.split(chunk)])
    inside = sum(int((torch.cdist(rows, manifold) <= radii).any(dim=1).sum()) for rows in samples.split(chunk))
    return inside / len(samples)
