"""Reads the weights of a Lightning checkpoint without running code that is pickled in it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from medfusion_monai.runtime.errors import WeightsError


class _Placeholder:
    """Stands for any class or function named in a file: constructed, called and filled without effect."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Placeholder:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Ignore the state: nothing of a file is called or kept."""


def read_state_dict(path: Path) -> dict[str, Any]:
    """Read ``state_dict`` of a Lightning checkpoint, or all of a ``.safetensors`` file, onto the CPU.

    Other entries (hyperparameters, callbacks) are not run: each class or function that they name becomes a
    placeholder without effect.

    Raises:
        WeightsError: if the file is missing, of another format, damaged, has no ``state_dict``, or contains what
            torch can only read by running code: operating system functions, or subclasses of dictionaries and lists.
    """
    if not path.is_file():
        raise WeightsError(f"weights {path} do not exist: choose another file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:
            raise WeightsError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    _refuse_damaged(path)
    content = _load(path)
    if not isinstance(content, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        found = f"the entries {list(content)[:8]}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise WeightsError(f"{path} has no 'state_dict' but {found}: give a Lightning checkpoint")
    return {str(name): value for name, value in content["state_dict"].items()}


def _refuse_damaged(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise WeightsError(
            f"{path} is not a zip file: it is not a checkpoint, is cut off, or was written by torch before 1.6; "
            "if you trust it, load it with torch and save it again"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            names, damaged = archive.namelist(), archive.testzip()  # torch does not compare the checksums of a zip
    except Exception as error:
        raise WeightsError(f"{path} cannot be read: {type(error).__name__}: {error}. Fetch it again") from error
    if damaged:
        raise WeightsError(f"{path} cannot be read: {damaged} in it is damaged. Fetch the file again")
    if not any(name.endswith("/data.pkl") for name in names):
        raise WeightsError(f"{path} is not a torch checkpoint: the zip file contains {names[:5]}")


def _load(path: Path) -> Any:
    """Read everything with torch's restricted unpickler, and placeholders for exactly the names in the file."""
    named: list[str] = []
    try:
        with open(path, "rb") as file:  # given a path, torch goes by its name
            named = get_unsafe_globals_in_checkpoint(file)
            file.seek(0)
            with safe_globals([(_Placeholder, name) for name in named]):
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"{path} cannot be read without running code that is pickled in it, or is damaged; it names "
            f"{', '.join(sorted(named)[:8]) or 'no classes or functions'}. If you trust it, load it with torch and "
            "save {'state_dict': its state_dict} again"
        ) from error
