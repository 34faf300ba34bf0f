"""What the values of several verbs' arguments may be."""

from __future__ import annotations

import argparse
from typing import Any


def column_value(text: str) -> tuple[str, str]:
    """Split ``NAME=VALUE`` at its first equals sign."""
    column, equals, value = text.partition("=")
    if not column or not equals:
        raise argparse.ArgumentTypeError(f"'{text}' has no name before an equals sign")
    return column, value


def yaml_value(key: str, text: str) -> Any:
    """Read the value of ``--set KEY=VALUE`` as the bundle's YAML would.

    Raises:
        ValueError: if it is no YAML.
    """
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {key}={text}: the value is no YAML. Write it as in the bundle's configs") from error


def positive(text: str) -> int:
    """Read an integer of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive integer")
    return int(text)


def whole(text: str) -> int:
    """Read an integer of 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not an integer of 0 or more")
    return int(text)


seed = whole
