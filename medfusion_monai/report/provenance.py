"""What a report states so its figures can be reproduced."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import monai
import numpy as np
import torch

import medfusion_monai

PATH_ALONE = re.compile(r"([^/\[{'\"]*[=:])?([^\[{'\"$]*/.*)", re.DOTALL)
"""A path, alone or after ``NAME=`` or ``KIND:``."""
PATH_AMONG_OTHERS = re.compile(r"(?<![^\s=:,'\"\[({])(?:[^\s=:,'\"\[\](){}/][^=:,'\"\[\](){}/]*)?/[^,'\"\])}]*")
"""A path within a list or an expression."""


def versions() -> dict[str, str]:
    """Return the versions that results depend on."""
    return {
        "medfusion_monai": medfusion_monai.__version__,
        "monai": monai.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def this_command(arguments: Sequence[str] | None = None) -> str:
    """Return the running command, quoted for a shell, with paths shortened to their last part.

    A report that is shared must not reveal where a hospital keeps its data.
    """
    program, *rest = list(sys.argv if arguments is None else arguments)
    start = [os.path.basename(program)]
    if start == ["__main__.py"]:  # of a package run by name, as for MONAI's bundles
        start = ["python", "-m", _package(Path(program).parent)]
    elif program.endswith(".py"):
        start = ["python", *start]
    return shlex.join([*start, *(_shortened(argument) for argument in rest)])


def _package(folder: Path) -> str:
    """Return the dotted name of the package in a folder."""
    for place in ("site-packages", "dist-packages"):
        if place in folder.parts:
            return ".".join(folder.parts[folder.parts.index(place) + 1 :])
    names: list[str] = []
    while (folder / "__init__.py").is_file():
        names, folder = [folder.name, *names], folder.parent
    return ".".join(names)


def _shortened(argument: str) -> str:
    if alone := PATH_ALONE.fullmatch(argument):
        return (alone[1] or "") + _last_part(alone[2])
    return PATH_AMONG_OTHERS.sub(lambda found: _last_part(found[0]), argument)


def _last_part(path: str) -> str:
    return os.path.basename(path.rstrip("/"))
