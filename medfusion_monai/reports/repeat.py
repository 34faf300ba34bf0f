"""What a report says so that its figures can be computed again."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Sequence

import monai
import numpy as np
import torch

import medfusion_monai


def versions() -> dict[str, str]:
    """Give the versions that results depend on."""
    return {
        "medfusion_monai": medfusion_monai.__version__,
        "monai": monai.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def this_command(arguments: Sequence[str] | None = None) -> str:
    """Give the command that is running, its absolute paths shortened to their last part.

    Where a hospital keeps its data is nothing for a report that is handed on.
    """
    program, *rest = list(sys.argv if arguments is None else arguments)
    return shlex.join([os.path.basename(program), *(_shortened(argument) for argument in rest)])


def _shortened(argument: str) -> str:
    before, equals, value = argument.rpartition("=")
    return f"{before}{equals}{os.path.basename(value.rstrip('/'))}" if os.path.isabs(value) else argument
