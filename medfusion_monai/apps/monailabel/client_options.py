"""Options that a client shows as a table: a list is a choice, true or false a box, the rest a cell of text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Default = bool | int | float | list[str]


def read_options(request: Mapping[str, Any], table: Mapping[str, Default]) -> dict[str, Any]:
    """Return the values of a task's options; those that a client leaves out or empty have their default.

    Clients send cells as text or numbers, choices as text or as the whole list with the chosen one first, and other
    entries of their own, which are ignored.

    Args:
        request: what the client sent.
        table: defaults by name. That of a choice is its first entry.

    Raises:
        ValueError: for a value of another type, or none of the choices.
    """
    return {name: _value(name, request.get(name), default) for name, default in table.items()}


def _value(name: str, given: Any, default: Default) -> Any:
    if isinstance(default, list):
        return _choice(name, given, default)
    if given is None or given == "":
        return default
    if isinstance(default, bool):
        return _flag(name, given)
    return _number(name, given, isinstance(default, int))


def _choice(name: str, given: Any, choices: list[str]) -> str:
    chosen = (given[0] if given else None) if isinstance(given, list) else given
    if chosen is None or chosen == "":
        return choices[0]
    if str(chosen) not in choices:
        raise ValueError(f"{name} {chosen!r} is unknown: choose one of {', '.join(choices)}")
    return str(chosen)


def _flag(name: str, given: Any) -> bool:
    if isinstance(given, bool):
        return given
    if str(given).lower() not in ("true", "false"):
        raise ValueError(f"{name} must be true or false, received {given!r}")
    return str(given).lower() == "true"


def _number(name: str, given: Any, whole: bool) -> int | float:
    if whole and str(given).isdecimal():  # exactly, also beyond what a float holds
        return int(given)
    try:
        number = float(given) if not isinstance(given, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or (whole and not number.is_integer()):
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number, received {given!r}")
    return int(number) if whole else number
