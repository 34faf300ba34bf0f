"""The Fréchet distance between two sets of features, each modelled as a Gaussian (FID)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from medfusion_monai.evaluation.metrics.comparison import Comparison
from medfusion_monai.evaluation.metrics.intervals import Figure, bootstrap_weights, figure_around

_CHUNK = 1024  # rows converted to float64 at a time
_COSTLY = 1000  # samples and dimensions above which a distance takes a second or more
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
        weights: (N,), how often each sample counts; None counts each once.
    """
    if weights is not None:
        occurring = weights > 0
        features, weights = features[occurring], weights[occurring].to(features.device, torch.float64)[:, None]
    else:
        weights = torch.ones(len(features), 1, dtype=torch.float64, device=features.device)
    count = weights.sum()
    parts = list(zip(features.split(_CHUNK), weights.split(_CHUNK), strict=True))
    mean = torch.stack([(part.double() * weight).sum(dim=0) for part, weight in parts]).sum(dim=0) / count
    # Rows are scaled by the root of their weight: their product with themselves is the covariance.
    rows = ((part.double() - mean) * (weight / (count - 1)).sqrt() for part, weight in parts)
    if len(features) <= features.shape[1]:
        return Gaussian(mean, torch.cat(list(rows)).T)
    covariance = mean.new_zeros(len(mean), len(mean))
    for part in rows:
        covariance.addmm_(part.T, part)
    return gaussian_of_moments(mean, covariance)


def gaussian_of_moments(mean: Tensor, covariance: Tensor) -> Gaussian:
    """Return a Gaussian from its mean (D,) and symmetric covariance (D, D)."""
    values, vectors = torch.linalg.eigh(covariance.double())
    # Without variance, rounding leaves values of either sign of about 1e-16 of the largest.
    values = values.where(values > 1e-14 * len(values) * values[-1], 0)
    return Gaussian(mean.double(), vectors * values.sqrt())


def gaussian_distance(first: Gaussian, second: Gaussian) -> float:
    """Squared Fréchet distance of two Gaussians (Dowson and Landau 1982), at least 0.

    The trace of the root of the covariances' product is the sum of the singular values of the factors' product:
    real and symmetric in both for any ranks, without a matrix root.
    """
    overlap = torch.linalg.svdvals(first.factor.T @ second.factor).sum()
    spread = first.factor.square().sum() + second.factor.square().sum() - 2 * overlap
    return max(0.0, float((first.mean - second.mean).square().sum() + spread))


def frechet_distance(
    real: Tensor, fake: Tensor, real_weights: Tensor | None = None, fake_weights: Tensor | None = None
) -> float:
    """Squared Fréchet distance of features (Heusel et al. 2017, equation 6): FID, if they are Inception's.

    It is exact even with fewer samples than features, where covariances are singular. The value depends on the number
    of samples, most of all then: compare only figures of equal counts.

    Args:
        real: (N, D).
        fake: (M, D).
        real_weights: (N,), how often each sample counts; None counts each once.
        fake_weights: (M,), likewise.

    Returns:
        At least 0.
    """
    return gaussian_distance(gaussian_of_samples(real, real_weights), gaussian_of_samples(fake, fake_weights))


def frechet_figure(real: Tensor, fake: Tensor, replicates: int = 100, seed: int = 0, note: str = "") -> Figure:
    """Fréchet distance with an interval from resampling both sets.

    The distance is biased upwards by the number of samples, and resampled sets, with fewer different samples, add to
    the bias. The interval is therefore the spread of the resampled distances around their own mean, laid around the
    estimate; it does not show the size of the bias. Neither distances nor ends are below 0. With fewer samples than
    dimensions the interval is about twice too wide.

    Where a distance takes seconds (more than a thousand samples and dimensions), ten replicates are used.
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
    """Return as many replicates as a distance's cost allows, and a note if they are fewer."""
    if min(len(real), len(fake), real.shape[1]) <= _COSTLY or replicates <= _FEW_REPLICATES:
        return replicates, note
    return _FEW_REPLICATES, "; ".join(filter(None, [note, f"interval from {_FEW_REPLICATES} resampled sets"]))


def _not_negative(figure: Figure) -> Figure:
    return figure if figure.low is None else figure._replace(low=max(0.0, figure.low))
