"""Arguments and argument types shared by several verbs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from medfusion_monai.runtime.values import check_config_paths, check_paths


def column_value(text: str) -> tuple[str, str]:
    """Split ``NAME=VALUE`` at its first equals sign."""
    column, equals, value = text.partition("=")
    if not column or not equals:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE")
    return column, value


def input_path(text: str) -> str:
    """Return a path to read from; it must not be empty or begin with ``~``."""
    return _checked(check_paths, text)


def bundle_path(text: str) -> str:
    """Return a path that a bundle's config may also contain, as that of written files: without ``#``."""
    return _checked(check_config_paths, text)


def named_path(text: str) -> tuple[str, str]:
    """Split ``NAME=PATH`` at its first equals sign; the path is checked as by ``input_path``."""
    name, path = column_value(text)
    return name, input_path(path)


def _checked(check: Callable[..., None], text: str) -> str:
    try:
        check(path=text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


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
