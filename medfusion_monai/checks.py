"""Checks of single values that users give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def is_whole(value: Any) -> bool:
    """Whether a value is an integer; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_bool(**values: Any) -> None:
    """Raise a ValueError unless the values of these keys are true or false."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, received {value!r}")


def check_counts(least: int = 1, **values: Any) -> None:
    """Raise a ValueError unless the values of these keys are whole numbers of at least ``least``."""
    for name, value in values.items():
        if not is_whole(value) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, received {value!r}")


def check_optional_counts(least: int = 1, **values: Any) -> None:
    """Raise a ValueError unless these keys are unset or whole numbers of at least ``least``."""
    check_counts(least, **{name: value for name, value in values.items() if value is not None})


def check_image_size(image_size: Any, factor: int = 8) -> None:
    """Raise a ValueError unless ``image_size`` is (height, width), both positive multiples of ``factor``."""
    sides: Sequence[Any] = list(image_size) if isinstance(image_size, list | tuple) else []
    if len(sides) != 2 or any(not is_whole(side) or side <= 0 or side % factor for side in sides):
        raise ValueError(
            f"image_size must be [height, width], both multiples of {factor} (the autoencoder makes images {factor} "
            f"times smaller), received {image_size}"
        )
