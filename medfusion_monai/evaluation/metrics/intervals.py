"""Figures with 95% intervals from resampling (Efron 1979)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

LEVEL = 0.95
"""Share of intervals that should contain the true value."""

_ENOUGH = 100  # resampled sets for percentiles; with 40, they contain the true value 91 times of 100
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

    For a share, pass ones and zeros, or booleans.

    Args:
        values: (N,).
        replicates: resampled sets; fewer than two leave the interval out. With fewer than a hundred, it is the
            interval of ``figure_around``, clipped to the range of the values.
        seed: of the resampling.

    Returns:
        The mean; None if there are no values or one is not finite.
    """
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
    if bool((values == values[0]).all()):
        return Figure(value, value, value, f"all {count} values are equal: resampling them shows no spread")
    low, high = (float(end) for end in values.aminmax())
    return figure_within(value, _resampled_means(values, replicates, seed), low, high)


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
    low, high = torch.quantile(values, torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=values.dtype))
    return float(low), float(high)
