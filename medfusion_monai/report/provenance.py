"""What a report says so that its figures can be computed again."""

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

PATH_ALONE = re.compile(r"([^/\[{'\"]*[=:])?(/.*)", re.DOTALL)
"""An absolute path, alone or behind ``NAME=`` or ``KIND:``."""
PATH_AMONG_OTHERS = re.compile(r"(?<![^\s=:,'\"\[({])/[^,'\"\])}]*")
"""One in a list or an expression."""


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
    """Return the command that is running, its absolute paths shortened to their last part.

    Where a hospital keeps its data is nothing for a report that is handed on.
    """
    program, *rest = list(sys.argv if arguments is None else arguments)
    start = [os.path.basename(program)]
    if start == ["__main__.py"]:  # of a package that was run by its name, as MONAI's bundles are
        start = ["python", "-m", ".".join(Path(program).parent.parts[-2:])]
    return shlex.join([*start, *(_shortened(argument) for argument in rest)])


def _shortened(argument: str) -> str:
    if alone := PATH_ALONE.fullmatch(argument):
        return (alone[1] or "") + _last_part(alone[2])
    return PATH_AMONG_OTHERS.sub(lambda found: _last_part(found[0]), argument)


def _last_part(path: str) -> str:
    return os.path.basename(path.rstrip("/"))
