"""Faults that are planted into a process before its command begins."""

import os
import resource
import sys
import time
from pathlib import Path


def at(event, contains, number=1, **action):
    """Do something right before the process opens or renames a file for the ``number``-th time.

    Args:
        event: ``open``, for writing and reading, or ``os.rename``, of a file that is whole to its place.
        contains: part of its path.
        number: counted from 1.
        action: of ``act``.
    """
    count, busy = 0, False

    def hook(name, arguments):
        nonlocal count, busy
        if busy or name != event or not isinstance(arguments[0], str | os.PathLike):
            return
        if contains in os.fspath(arguments[0]):
            count += 1
            if count == number:
                busy = True  # what the action opens is none of the command's
                act(**action)
                busy = False

    sys.addaudithook(hook)


def act(kill=None, fill=None, delete=None, truncate=None, shell=None):
    """Send a signal to this process, fill a disk, delete or halve a file, or run a command."""
    if kill is not None:
        os.kill(os.getpid(), kill)
    if fill is not None:
        fill_disk(Path(fill))
    if delete is not None:
        os.unlink(delete)
    if truncate is not None:
        os.truncate(truncate, os.path.getsize(truncate) // 2)
    if shell is not None and os.system(shell):
        os.write(2, f"failed: {shell}\n".encode())


def fill_disk(folder):
    block = bytes(4096)
    file = os.open(folder / "filler", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        while True:
            os.write(file, block)
    except OSError:
        os.close(file)


def count_renames(report):
    """Write at the end how many files were renamed to their places."""
    count = 0

    def hook(name, arguments):
        nonlocal count
        if name == "os.rename":
            count += 1
            os.write(file, f"{arguments[0]}\n".encode())

    file = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    sys.addaudithook(hook)


def memory_limit(mib):
    """Let the process have that much memory beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def not_a_number(step):
    """Make an image of a batch of phase two not a number."""
    from medfusion_monai.training.prepare_batch import DiffusionPrepareBatch

    prepare, count = DiffusionPrepareBatch.__call__, 0

    def spoilt(self, batch, *args, **kwargs):
        nonlocal count
        count += 1
        if count == step:
            key = "moments" if "moments" in batch else "image"
            batch[key][0, 0, 0, 0] = float("nan")
        return prepare(self, batch, *args, **kwargs)

    DiffusionPrepareBatch.__call__ = spoilt


def clock_back(days, calls):
    """Set the clock back after a number of looks at it."""
    now, count = time.time, 0

    def behind():
        nonlocal count
        count += 1
        return now() - (86400 * days if count > calls else 0)

    time.time = behind


def memory_limit_at(event, contains, mib, number=1):
    """Set ``memory_limit`` right before the process opens or renames a file for the ``number``-th time."""
    count = 0

    def hook(name, arguments):
        nonlocal count
        if name == event and isinstance(arguments[0], str | os.PathLike) and contains in os.fspath(arguments[0]):
            count += 1
            if count == number:
                memory_limit(mib)

    sys.addaudithook(hook)
