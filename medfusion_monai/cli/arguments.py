"""Arguments and argument types shared by several verbs."""

from __future__ import annotations

import argparse
from typing import Any


def column_value(text: str) -> tuple[str, str]:
    """Split ``NAME=VALUE`` at its first equals sign."""
    column, equals, value = text.partition("=")
    if not column or not equals:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE")
    return column, value


def yaml_value(key: str, text: str) -> Any:
    """Read the value of ``--set KEY=VALUE`` as YAML, like the bundle's configs.

    Raises:
        ValueError: if it is not YAML.
    """
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {key}={text}: the value is not YAML. Write it as in the bundle's configs") from error


def add_settings(parser: argparse.ArgumentParser, what: str, example: str) -> None:
    """Add ``--set KEY=VALUE`` for keys of a config.

    Args:
        parser: parser of the verb.
        what: description of the keys.
        example: a key with its value.
    """
    parser.add_argument(
        "--set",
        action="append",
        type=column_value,
        default=[],
        metavar="KEY=VALUE",
        help=f"{what}, e.g. {example}; repeatable",
    )


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the values of ``--set``.

    Raises:
        ValueError: if one is not YAML.
    """
    return {key: yaml_value(key, text) for key, text in arguments.set}


def positive(text: str) -> int:
    """Parse an integer of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive integer")
    return int(text)


def whole(text: str) -> int:
    """Parse an integer of 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not an integer of 0 or more")
    return int(text)


seed = whole
