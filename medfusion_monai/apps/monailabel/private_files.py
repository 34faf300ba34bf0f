"""Files of requests: in a folder that only this user can read, and removed when a request is refused."""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def private_temporary_files(folder: Path) -> Iterator[None]:
    """Make a new folder that of temporary files, in this process and those that it starts.

    MONAI Label writes what clients send under the system's folder, where every user of the machine can read it.
    """
    folder.mkdir(mode=0o700)
    before, tempfile.tempdir = (tempfile.tempdir, os.environ.get("TMPDIR")), str(folder)
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before[0]
        os.environ.pop("TMPDIR")
        if before[1] is not None:
            os.environ["TMPDIR"] = before[1]


def leaving_nothing(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return an endpoint's function that removes at once what it keeps of a refused request.

    FastAPI does what is to be done after an answer, such as the removal of uploads, only if there was no error.

    Args:
        run: gets ``background_tasks`` first, and perhaps ``params``, JSON of an object.
    """
    signature = inspect.signature(run)

    @functools.wraps(run)
    def checked(background_tasks: Any, *arguments: Any, **named: Any) -> Any:
        params = signature.bind(background_tasks, *arguments, **named).arguments.get("params")
        if params and not isinstance(json.loads(params), dict):
            raise ValueError('params must be a JSON object, such as {"seed": 3}')
        try:
            return run(background_tasks, *arguments, **named)
        except Exception:
            for task in background_tasks.tasks:
                task.func(*task.args, **task.kwargs)
            raise

    return checked


def without_folders(text: str, folders: list[str]) -> str:
    """Return a text with files below some folders by their names alone."""
    for folder in filter(None, folders):
        text = re.sub(rf"{re.escape(folder.rstrip(os.sep))}/(?:[^/\s]+/)*", "", text)
    return text
