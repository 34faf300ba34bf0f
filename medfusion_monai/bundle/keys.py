"""Refuses unknown keys of a config, without importing MONAI or PyTorch."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import yaml


def refuse_unknown_keys(files: Sequence[str], overrides: Iterable[str]) -> None:
    """Refuse overrides of keys that config files do not have.

    Args:
        files: YAML or JSON; later ones are merged into earlier ones as by MONAI's ``ConfigParser``.
        overrides: keys, nested ones with ``#`` or ``::``. A new key within an existing part is accepted, since it may
            be a keyword of a component.

    Raises:
        ValueError: for missing and unreadable files, and for unknown keys, with the nearest known ones.
    """
    missing = [file for file in files if not os.path.isfile(file)]
    if missing:
        raise ValueError(f"{', '.join(missing)}: no such file. Pass configs of a bundle, e.g. configs/train.yaml")
    config: dict[str, Any] = {"_meta_": {}}  # a key of every ConfigParser
    with reading(files):
        for file in files:
            for key, value in _load(file).items():
                _merge(config, key, value)
    unknown = [key for key in overrides if not _is_known(key, config)]
    if unknown:
        raise unknown_keys(unknown, config)


def unknown_keys(unknown: Iterable[str], known: Iterable[str], prefix: str = "") -> ValueError:
    """Return the error for unknown keys, each with a prefix, e.g. ``--``."""
    return ValueError(f"{with_nearest(unknown, known, prefix)}: not a key of this config. Correct the name, or omit it")


def with_nearest(unknown: Iterable[str], known: Iterable[str], prefix: str = "") -> str:
    """Return keys, each with the known keys closest to it, or otherwise to its first part."""
    names = [str(name) for name in known]
    closest = partial(difflib.get_close_matches, possibilities=names, n=2)
    near = {key: closest(key) or closest(_parts(key)[0]) for key in unknown}
    return ", ".join(
        f"{prefix}{key}" + (f" (near: {', '.join(found)})" if found else "") for key, found in near.items()
    )


@contextmanager
def reading(files: Sequence[str]) -> Iterator[None]:
    """Raise any error of a YAML or JSON reader as a ValueError with the names of the files."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{', '.join(files)}: cannot be read as configs: {error}") from error


def read_content(file: str | os.PathLike[str]) -> Any:
    """Return the content of a YAML or JSON file.

    Raises:
        ValueError: for a file with another ending.
        Exception: whatever reading a broken file raises.
    """
    suffix = os.path.splitext(file)[1].lower()
    if suffix not in (".yaml", ".yml", ".json"):
        raise ValueError(f"'{file}' is not named .yaml, .yml or .json")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, if PyYAML was built with it
    with open(file, encoding="utf-8") as stream:
        return json.load(stream) if suffix == ".json" else yaml.load(stream, loader)


def _load(file: str) -> dict[str, Any]:
    content = read_content(file)
    if not isinstance(content, dict):
        raise ValueError(f"'{file}' contains a {type(content).__name__} instead of keys with values")
    return content


def _merge(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a key of a later file, as ``ConfigParser`` does: ``+key`` extends a mapping or a list."""
    *above, last = _parts(key.removeprefix("+"))
    part: Any = _find(config, above)
    old = _find(config, [*above, last]) if _has(config, [*above, last]) else None
    if key.startswith("+") and isinstance(old, dict):
        old.update(value)
    elif key.startswith("+") and isinstance(old, list):
        old.extend(value)
    else:
        part[last if isinstance(part, dict) else int(last)] = value


def _is_known(key: str, config: Mapping[str, Any]) -> bool:
    *above, last = _parts(key)
    return _has(config, [*above, last]) or (bool(above) and _has(config, above))


def has_key(config: Mapping[str, Any], key: str) -> bool:
    """Return whether a config has a key, nested ones with ``#`` or ``::``."""
    return _has(config, _parts(key))


def _has(config: Mapping[str, Any], parts: Sequence[str]) -> bool:
    try:
        _find(config, parts)
    except (LookupError, ValueError):
        return False
    return True


def _find(config: Any, parts: Sequence[str]) -> Any:
    for part in parts:
        if not isinstance(config, dict | list):
            raise LookupError(f"{part}: {config!r} is not a mapping or a list")
        config = config[part] if isinstance(config, dict) else config[int(part)]
    return config


def _parts(key: str) -> list[str]:
    return re.split("#|::", key)
