"""Reading a bundle's configs without its runner."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from monai.bundle import ConfigParser

from medfusion_monai.errors import first_cause

Caller = TypeVar("Caller")


def read_configs(
    bundle: str | Path, names: Sequence[str], overrides: Mapping[str, Any] | None = None, option: str = "--set"
) -> ConfigParser:
    """Read config files of a bundle, later ones merged after earlier ones, with overrides after all.

    Args:
        bundle: folder of the bundle.
        names: files of its ``configs``.
        overrides: values of keys.
        option: how a user gives overrides, for the message.

    Raises:
        ValueError: for a file that is missing, and for an override that is no key of the configs.
    """
    files = [Path(bundle) / "configs" / name for name in names]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"{', '.join(missing)}: no such file. Name the folder of a bundle, and files of its configs")
    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    unknown = [name for name in overrides or {} if name not in parser]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no key of the bundle's configs. Correct the name ({option} KEY=VALUE)")
    parser.update(dict(overrides or {}))
    return parser


def calling(kind: type[Caller]) -> Caller | None:
    """Give the nearest object of a kind whose method is among the callers; None if there is none.

    An expression of a config is told neither its parser nor its workflow.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, kind):
            return caller
        frame = frame.f_back
    return None


def build(parser: ConfigParser, key: str) -> Any:
    """Give what a key of the configs stands for, built; a ValueError of a constructor comes as it is.

    Raises:
        ValueError: for a setting that a constructor refuses.
    """
    try:
        return parser.get_parsed_content(key)
    except RuntimeError as error:
        cause = first_cause(error)
        if isinstance(cause, ValueError):
            raise cause from error
        raise
