"""Locks that say that a folder is in use; the system lifts them when a process ends, however it ends."""

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
    """Lock a file, beside others who hold it, until the file that is returned is closed or forgotten.

    Waits for an :func:`alone` that is under way. Returns None where there are no locks: on systems other than POSIX
    ones, on some network drives, and where the file cannot be written.
    """
    return _locked(lock, wait=True)


@contextmanager
def alone(lock: str | Path) -> Iterator[bool]:
    """Yield whether nobody else holds a file, and keep it so in the block; False too where that cannot be known."""
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
