"""Locks that mark a folder as in use; the system releases them when a process ends, even if it is killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # no POSIX system
    fcntl = None  # type: ignore[assignment]


def hold(lock: str | Path) -> IO[bytes] | None:
    """Take a shared lock on a file, until the returned file is closed or garbage-collected.

    Waits while :func:`alone` holds the file. Returns None if locks are unavailable: on systems other than POSIX, on
    some network drives, and for a file that cannot be written.
    """
    return _locked(lock, wait=True)


@contextmanager
def alone(lock: str | Path) -> Iterator[bool]:
    """Lock a file exclusively in the block; yield False if others hold it or locks are unavailable."""
    file = _locked(lock, wait=False)
    try:
        yield file is not None
    finally:
        if file is not None:
            file.close()


def _locked(lock: str | Path, wait: bool) -> IO[bytes] | None:
    if fcntl is None:
        return None
    try:
        file = open(lock, "ab")  # noqa: SIM115, it is held beyond this function
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
