"""Figures with 95% intervals: by resampling (Efron 1979), of shares by Wilson's score (1927)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

LEVEL = 0.95
"""Share of intervals that should contain the true value."""

_ENOUGH = 100  # resampled sets for percentiles; with 40, they are about the smallest and the largest value
_REPLICATES_AT_A_TIME = 50  # bounds the memory of the weights


class Figure(NamedTuple):
    """A measured value with its 95% interval.

    Attributes:
        value: None if it could not be computed; ``note`` then states why.
        low: lower end of the interval, None without one.
        high: upper end of the interval, None without one.
        note: what qualifies the value.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the figure for JSON."""
        return self._asdict()


def bootstrap_weights(count: int, replicates: int, seed: int | np.random.Generator = 0) -> Tensor:
    """Draw how often each of ``count`` items occurs in each resampled set of ``count`` items.

    Returns:
        (replicates, count), whole numbers in float64; each row sums to ``count``.
    """
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.multinomial(count, np.full(count, 1 / count), size=replicates)).double()


def mean_figure(values: Tensor, replicates: int = 1000, seed: int = 0) -> Figure:
    """Mean of one value per item, with a percentile bootstrap interval over the items.

    The mean of booleans is a share, whose interval is Wilson's: resampling shows too little spread near 0 and 1.

    Args:
        values: (N,).
        replicates: resampled sets; fewer than two leave the interval out. With fewer than a hundred, it is the
            interval of ``figure_around``, clipped to the range of the values.
        seed: of the resampling.

    Returns:
        The mean; None if there are no values or one is not finite.
    """
    is_share = values.dtype == torch.bool
    values = values.detach().cpu().double().flatten()
    count = len(values)
    broken = int((~values.isfinite()).sum())
    if count == 0 or broken:
        return Figure(None, note=f"{broken} of {count} values are not finite" if count else "no values")
    value = float(values.mean())
    if count == 1:
        return Figure(value, note="one value has no interval")
    if replicates < 2:
        return Figure(value)
    if is_share:
        return share_figure(value, count)
    if bool((values == values[0]).all()):
        return Figure(value, value, value, f"all {count} values are equal: resampling them shows no spread")
    low, high = (float(end) for end in values.aminmax())
    return figure_within(value, _resampled_means(values, replicates, seed), low, high)


def share_figure(value: float, count: float, resampled: Tensor | None = None, note: str = "") -> Figure:
    """Return a share with Wilson's score interval (1927), which is not too narrow near 0 and 1.

    Args:
        value: the share.
        count: items that it is the share of.
        resampled: (R,), shares of resampled sets, if the items are not independent or are not all that varies. The
            count is then divided by the ratio of their variance to that of independent items (Kish's design effect).
        note: what qualifies the value.
    """
    quantile = float(stdtrit(np.inf, (1 + LEVEL) / 2))
    if resampled is not None:
        quantile = float(stdtrit(len(resampled) - 1, (1 + LEVEL) / 2))
        share, variance = float(resampled.double().mean()), float(resampled.double().var())
        independent = share * (1 - share) / count
        if variance > independent > 0:
            count *= independent / variance
    square = quantile**2 / count
    middle = (value + square / 2) / (1 + square)
    half = quantile / (1 + square) * ((value * (1 - value) + square / 4) / count) ** 0.5
    return Figure(value, max(0.0, min(value, middle - half)), min(1.0, max(value, middle + half)), note)


def figure_by_factor(value: float, resampled: Tensor, widening: float = 1.0, note: str = "") -> Figure:
    """Return a positive value with an interval from its share to its multiple by one factor.

    The factor is that of the relative standard deviation of resampled values, whose own level may differ.

    Args:
        value: at least 0; 0 has no interval.
        resampled: (R,), at least two.
        widening: multiplies the standard deviation.
        note: what qualifies the value.
    """
    if not value > 0:
        return Figure(value, note="; ".join(filter(None, [note, "0 has no interval"])))
    quantile = float(stdtrit(len(resampled) - 1, (1 + LEVEL) / 2))
    deviation = float(resampled.double().std() / resampled.double().mean().clamp_min(1e-12))
    factor = float(np.exp(min(quantile * widening * deviation, 50.0)))
    return Figure(value, value / factor, value * factor, note)


def figure_within(value: float, resampled: Tensor, least: float, most: float, note: str = "") -> Figure:
    """Return a value with the percentiles of its resampled values; for few of them, the interval of ``figure_around``.

    Args:
        value: the unbiased estimate of the whole set.
        resampled: (R,), the estimates of resampled sets.
        least: lower bound of the estimates and of the interval.
        most: upper bound.
        note: what qualifies the value.
    """
    if len(resampled) >= _ENOUGH:
        return Figure(value, *_percentiles(resampled), note)
    figure = figure_around(value, resampled, note)
    if figure.low is None or figure.high is None:
        return figure
    return figure._replace(low=max(figure.low, least), high=min(figure.high, most))


def figure_around(value: float, resampled: Tensor, note: str = "") -> Figure:
    """Lay the spread of resampled values, taken around their own mean, around a value.

    For estimates whose bias depends on the number of different items, as FID's does: a resampled set has fewer
    different items than the set, so its value is biased further. The spread is not.

    Args:
        value: the estimate of the whole set.
        resampled: (R,), the estimates of resampled sets; fewer than two leave the interval out. Fewer than a
            hundred, too few for percentiles, give an interval from their standard deviation and Student's t.
        note: what qualifies the value.
    """
    if len(resampled) < 2:
        return Figure(value, note=note)
    low, high = _percentiles(resampled.double() - resampled.double().mean())
    if len(resampled) < _ENOUGH:
        half = float(stdtrit(len(resampled) - 1, (1 + LEVEL) / 2)) * float(resampled.double().std())
        low, high = -half, half
    return Figure(value, value + low, value + high, note)


def _resampled_means(values: Tensor, replicates: int, seed: int) -> Tensor:
    """Means (replicates,) of resampled values (N,)."""
    generator = np.random.default_rng(seed)
    parts = [min(_REPLICATES_AT_A_TIME, replicates - start) for start in range(0, replicates, _REPLICATES_AT_A_TIME)]
    return torch.cat([bootstrap_weights(len(values), part, generator) @ values for part in parts]) / len(values)


def _percentiles(values: Tensor) -> tuple[float, float]:
    """Ends that a further value of the same distribution exceeds as often as ``LEVEL`` says, for any number of values.

    It falls with equal chance between any two of R sorted values or outside, so the share p is at rank p (R + 1)
    (Davison and Hinkley 1997, section 5.2.1). Interpolation at p (R - 1) + 1, the default of torch and numpy, leaves
    out 7% at R = 100 in place of 5%.
    """
    low, high = np.quantile(values.double().numpy(), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="weibull")
    return float(low), float(high)
