"""The kernel distance between two sets of features (KID), without a kernel matrix of all samples."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medfusion_monai.evaluation.metrics.comparison import Comparison
from medfusion_monai.evaluation.metrics.intervals import Figure, bootstrap_weights, figure_around
from medfusion_monai.evaluation.metrics.neighbours import blocks


def kernel_distance(real: Tensor, fake: Tensor, chunk: int = 1024) -> float:
    """Squared maximum mean discrepancy by the kernel (xy / D + 1)^3 (Binkowski et al. 2018, section 4): KID.

    One unbiased estimate over all samples. The usual mean over random subsets estimates the same with more noise, and
    depends on their seed and size; it only saves memory, as the chunks do.

    Args:
        real: features (N, D).
        fake: features (M, D).
        chunk: rows and columns of the kernel matrix at a time, which bounds the memory.

    Returns:
        About 0 for equal distributions, as often below as above.
    """
    return float(_distances(real, fake, _ones(real), _ones(fake), chunk))


def kernel_figure(real: Tensor, fake: Tensor, replicates: int = 100, seed: int = 0, note: str = "") -> Figure:
    """Kernel distance with an interval from resampling both sets, in one pass over the kernel's values.

    A sample that is drawn several times is not paired with itself, so the resampled distances are unbiased too. Near a
    distance of 0 their spread is about 1.6 times that of the distance: the interval is too wide.
    """
    generator = np.random.default_rng(seed)
    real_weights = torch.cat([_ones(real), bootstrap_weights(len(real), replicates, generator)])
    fake_weights = torch.cat([_ones(fake), bootstrap_weights(len(fake), replicates, generator)])
    distances = _distances(real, fake, real_weights, fake_weights)
    resampled = distances[1:]
    # A set resampled from two or three samples may repeat a single one, which leaves no pairs.
    return figure_around(float(distances[0]), resampled[resampled.isfinite()], note)


def kid_figure(sets: Comparison) -> Figure:
    """Return the kernel distance with its interval."""
    return kernel_figure(sets.real, sets.fake, sets.replicates, sets.seed, sets.note)


def _distances(real: Tensor, fake: Tensor, real_weights: Tensor, fake_weights: Tensor, chunk: int = 1024) -> Tensor:
    """Distances (R,) for weights (R, N) and (R, M)."""
    real_weights, fake_weights = real_weights.to(real.device), fake_weights.to(fake.device)
    within = _within(real, real_weights, chunk) + _within(fake, fake_weights, chunk)
    between = torch.zeros_like(within)
    for i in blocks(len(real), chunk):
        for j in blocks(len(fake), chunk):
            between += _weighted_sums(_kernel(real[i], fake[j]), real_weights[:, i], fake_weights[:, j])
    return within - 2 * between / (real_weights.sum(dim=1) * fake_weights.sum(dim=1))


def _within(features: Tensor, weights: Tensor, chunk: int) -> Tensor:
    """Weighted mean (R,) of the kernel over all pairs of different samples; NaN without any."""
    total = weights.new_zeros(len(weights))
    for i in blocks(len(features), chunk):
        for j in blocks(len(features), chunk):
            if j.start < i.start:
                continue  # symmetric: each off-diagonal block counts twice
            kernel = _kernel(features[i], features[j])
            if i == j:
                kernel.fill_diagonal_(0)
            total += _weighted_sums(kernel, weights[:, i], weights[:, j]) * (1 if i == j else 2)
    return total / (weights.sum(dim=1).square() - weights.square().sum(dim=1))


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    """Kernel (N, M) in float64; the product, nearly all of the work, keeps the precision of the features."""
    dtype = first.dtype if first.dtype in (torch.float32, torch.float64) else torch.float32
    return ((first.to(dtype) @ second.to(dtype).T).double() / first.shape[1] + 1) ** 3


def _weighted_sums(kernel: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Sum over i, j of first_i kernel_ij second_j for each of R pairs of weights (R, N), (R, M)."""
    return ((first @ kernel) * second).sum(dim=1)


def _ones(features: Tensor) -> Tensor:
    return torch.ones(1, len(features), dtype=torch.float64)
