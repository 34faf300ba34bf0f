"""Precision and recall, density and coverage: the share of images that look real, and of real ones that are covered."""

from __future__ import annotations

from torch import Tensor

from medfusion_monai.evaluation.metrics.comparison import Comparison, check_features
from medfusion_monai.evaluation.metrics.intervals import Figure, figure_by_factor, share_figure
from medfusion_monai.evaluation.metrics.neighbours import neighbourhoods

_DENSITY_WIDENING = 1.15  # calibrated by benchmarks/intervals.py


def improved_precision_recall(real: Tensor, fake: Tensor, k: int = 3, chunk: int = 1024) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, equation 1).

    Precision is the share of generated samples within the manifold of the real ones, recall the share of real samples
    within the manifold of the generated ones. A manifold is the union of balls around all samples, each as large as the
    distance to the sample's k-th nearest neighbour.

    Args:
        real: features (N, D).
        fake: features (M, D).
        k: neighbours; the paper and Medfusion use 3.
        chunk: rows and columns of the distance matrix at a time, which bounds the memory.

    Returns:
        Precision and recall, each in [0, 1].

    Raises:
        ValueError: if a set has no more than ``k`` samples, the features differ in size, or one is not finite.
    """
    check_features(real, fake)
    _check_neighbours(real, fake, k)
    shares = neighbourhoods(real, fake, k, k, chunk)
    return float(shares.precision.double().mean()), float(shares.recall.double().mean())


def density_coverage(real: Tensor, fake: Tensor, k: int = 5, chunk: int = 1024) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, equations 4 and 5).

    Density is the mean number of balls around real samples that contain a generated sample, over k; coverage is the
    share of real samples whose ball contains a generated one. Both build balls around real samples only, so single
    outliers among the generated samples do not raise them as they raise recall.

    Args:
        real: features (N, D).
        fake: features (M, D).
        k: neighbours; the paper uses 5.
        chunk: rows and columns of the distance matrix at a time, which bounds the memory.

    Returns:
        Density, at least 0 and about 1 for equal distributions, and coverage, in [0, 1].

    Raises:
        ValueError: if a set has no more than ``k`` samples, the features differ in size, or one is not finite.
    """
    check_features(real, fake)
    _check_neighbours(real, fake, k)
    shares = neighbourhoods(real, fake, k, k, chunk)
    return float(shares.density.mean()), float(shares.coverage.double().mean())


def precision_figure(sets: Comparison) -> Figure:
    """Return precision with its interval."""
    return _figure(sets, "precision", sets.k)


def recall_figure(sets: Comparison) -> Figure:
    """Return recall with its interval."""
    return _figure(sets, "recall", sets.k)


def density_figure(sets: Comparison) -> Figure:
    """Return density with its interval."""
    return _figure(sets, "density", sets.density_k)


def coverage_figure(sets: Comparison) -> Figure:
    """Return coverage with its interval."""
    return _figure(sets, "coverage", sets.density_k)


def _figure(sets: Comparison, name: str, k: int) -> Figure:
    """Average a share over samples, with an interval of its mean over other sets of these counts.

    It is from half sets: the neighbourhoods vary from draw to draw too, not only the samples that are counted.
    ``benchmarks/intervals.py`` measures how often the intervals contain that mean.
    """
    if sets.constant:
        return Figure(None, note=f"{sets.note}: there are no neighbourhoods")
    smallest = min(len(sets.real), len(sets.fake))
    if smallest <= k:
        return Figure(None, note=f"{sets.counts}: {k} neighbours need more than {k} in each set")
    shares = getattr(sets.shares, name)
    value = float(shares.double().mean())
    if sets.replicates < 2:
        return Figure(value, note=sets.counts)
    if smallest // 2 <= k:
        return Figure(value, note=f"{sets.counts}: an interval needs more than {k} in each half of a set")
    halves, note = sets.halves[name], sets.counts
    if len(halves) < sets.replicates:
        note += f"; interval from {len(halves)} pairs of halves"
    if name == "density":
        return figure_by_factor(value, halves, _DENSITY_WIDENING, note)
    return share_figure(value, len(shares), halves, note)


def _check_neighbours(real: Tensor, fake: Tensor, k: int) -> None:
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"k={k} neighbours need more than {k} samples in each set: {len(real)} real, {len(fake)} fake")
