"""The Fréchet distance of two sets of features, each taken as a Gaussian (FID)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from medfusion_monai.evaluation.metrics.comparison import Comparison
from medfusion_monai.evaluation.metrics.intervals import Figure, bootstrap_weights, figure_around

_CHUNK = 1024  # rows that are float64 at a time
_COSTLY = 1000  # samples and dimensions above which a distance takes a second and more
_FEW_REPLICATES = 10


class Gaussian(NamedTuple):
    """A Gaussian whose covariance is ``factor @ factor.T``, of any rank.

    Attributes:
        mean: (D,), float64.
        factor: (D, R), float64.
    """

    mean: Tensor
    factor: Tensor


def gaussian_of_samples(features: Tensor, weights: Tensor | None = None) -> Gaussian:
    """Fit mean and unbiased covariance to features.

    Args:
        features: (N, D), at least two samples.
        weights: (N,), how often each sample counts; once each, if None.
    """
    if weights is not None:
        occurring = weights > 0
        features, weights = features[occurring], weights[occurring].to(features.device, torch.float64)[:, None]
    else:
        weights = torch.ones(len(features), 1, dtype=torch.float64, device=features.device)
    count = weights.sum()
    parts = list(zip(features.split(_CHUNK), weights.split(_CHUNK), strict=True))
    mean = torch.stack([(part.double() * weight).sum(dim=0) for part, weight in parts]).sum(dim=0) / count
    # Each row by the root of its weight, so that the product of the rows with themselves is the covariance.
    rows = ((part.double() - mean) * (weight / (count - 1)).sqrt() for part, weight in parts)
    if len(features) <= features.shape[1]:
        return Gaussian(mean, torch.cat(list(rows)).T)
    covariance = mean.new_zeros(len(mean), len(mean))
    for part in rows:
        covariance.addmm_(part.T, part)
    return gaussian_of_moments(mean, covariance)


def gaussian_of_moments(mean: Tensor, covariance: Tensor) -> Gaussian:
    """Take a Gaussian from its mean (D,) and its symmetric covariance (D, D)."""
    values, vectors = torch.linalg.eigh(covariance.double())
    # Rounding leaves values of about 1e-16 of the largest, of either sign, where there is no variance.
    values = values.where(values > 1e-14 * len(values) * values[-1], 0)
    return Gaussian(mean.double(), vectors * values.sqrt())


def gaussian_distance(first: Gaussian, second: Gaussian) -> float:
    """Squared Fréchet distance of two Gaussians (Dowson and Landau 1982), at least 0.

    The trace of the root of the covariances' product is the sum of the singular values of the factors' product:
    real and symmetric in both whatever the ranks, and no root of a matrix is taken.
    """
    overlap = torch.linalg.svdvals(first.factor.T @ second.factor).sum()
    spread = first.factor.square().sum() + second.factor.square().sum() - 2 * overlap
    return max(0.0, float((first.mean - second.mean).square().sum() + spread))


def frechet_distance(
    real: Tensor, fake: Tensor, real_weights: Tensor | None = None, fake_weights: Tensor | None = None
) -> float:
    """Squared Fréchet distance of features (Heusel et al. 2017, equation 6): FID, if they are Inception's.

    It is exact also with fewer samples than features, where covariances are singular. Then, and to a smaller degree
    always, the value depends on the number of samples: compare only figures of equal counts.

    Args:
        real: (N, D).
        fake: (M, D).
        real_weights: (N,), how often each sample counts; once each, if None.
        fake_weights: (M,), likewise.

    Returns:
        At least 0.
    """
    return gaussian_distance(gaussian_of_samples(real, real_weights), gaussian_of_samples(fake, fake_weights))


def frechet_figure(real: Tensor, fake: Tensor, replicates: int = 100, seed: int = 0, note: str = "") -> Figure:
    """Fréchet distance with an interval from resampling both sets.

    The distance is biased upwards by the number of samples, and a resampled set, with fewer different samples, is
    biased once more. So the interval takes the spread of the resampled distances around their own mean and lies
    around the estimate; it does not tell how large the bias is. No distance is below 0, nor is an end. With fewer
    samples than dimensions the interval is too wide, about twice.

    Where a distance takes seconds (more than a thousand samples and dimensions), ten replicates have to do.
    """
    replicates, note = _affordable(real, fake, replicates, note)
    generator = np.random.default_rng(seed)
    real_weights = bootstrap_weights(len(real), replicates, generator)
    fake_weights = bootstrap_weights(len(fake), replicates, generator)
    resampled = [frechet_distance(real, fake, *pair) for pair in zip(real_weights, fake_weights, strict=True)]
    return _not_negative(figure_around(frechet_distance(real, fake), torch.tensor(resampled), note))


def fid_figure(sets: Comparison) -> Figure:
    """Return the Fréchet distance with its interval; the note mentions too few samples for a full covariance."""
    count, dimensions = min(len(sets.real), len(sets.fake)), sets.real.shape[1]
    note = sets.note
    if count <= dimensions:
        singular = f"{count} samples for {dimensions} features: the covariance is singular"
        note += f"; {singular}, the value depends on their number"
    return frechet_figure(sets.real, sets.fake, sets.replicates, sets.seed, note)


def _affordable(real: Tensor, fake: Tensor, replicates: int, note: str) -> tuple[int, str]:
    """Give no more replicates than a distance's cost allows, and the note that says so."""
    if min(len(real), len(fake), real.shape[1]) <= _COSTLY or replicates <= _FEW_REPLICATES:
        return replicates, note
    return _FEW_REPLICATES, "; ".join(filter(None, [note, f"interval from {_FEW_REPLICATES} resampled sets"]))


def _not_negative(figure: Figure) -> Figure:
    return figure if figure.low is None else figure._replace(low=max(0.0, figure.low))
