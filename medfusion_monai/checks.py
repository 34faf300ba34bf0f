"""Checks of single values that the command line may have given as something else."""

from __future__ import annotations

from typing import Any


def is_whole(value: Any) -> bool:
    """Whether a value is an integer; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def refuse_null(name: str, value: Any) -> None:
    """Raise a ValueError for the texts null and none: the bundle runner passes them on as they are."""
    if isinstance(value, str) and value.lower() in ("null", "none"):
        raise ValueError(f"{name} is the text {value!r}: for no value write --{name} '$None', with the quotes")
