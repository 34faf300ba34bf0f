"""The range of values that the user states, for files whose type or header states another."""

from __future__ import annotations

import math

import numpy as np

ValueRange = tuple[float, float]


def check_range(value_range: ValueRange | None) -> None:
    """Raise a ValueError unless ``value_range`` is None or two finite numbers, the lower one first."""
    if value_range is not None and not -math.inf < value_range[0] < value_range[1] < math.inf:
        low, high = value_range
        raise ValueError(f"the range of values is {low:g} to {high:g}: pass two numbers, the lower first, e.g. 0 4095")


def to_unit_range(values: np.ndarray, value_range: ValueRange) -> np.ndarray:
    """Map the lower end of a range to 0, the upper to 1, and clip values outside."""
    low, high = value_range
    unit = values - np.float64(low)
    unit /= high - low
    return np.clip(unit, 0, 1, out=unit)
