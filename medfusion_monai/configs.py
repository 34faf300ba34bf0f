"""Reading a bundle's configs without its runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser


def read_configs(bundle: str | Path, names: Sequence[str], overrides: Mapping[str, Any] | None = None) -> ConfigParser:
    """Read config files of a bundle, later ones merged after earlier ones, with overrides after all.

    Args:
        bundle: folder of the bundle.
        names: files of its ``configs``.
        overrides: values of keys.

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
        raise ValueError(f"{', '.join(unknown)}: not a key of the bundle's configs. Correct the name")
    parser.update(dict(overrides or {}))
    return parser
