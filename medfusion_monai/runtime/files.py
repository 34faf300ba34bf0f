"""Files that are never half-written."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
THREADS = 16
FILES_PER_TASK = 100


class DiskFullError(OSError, ValueError):
    """A file that the disk has no room for; what was at its place before is still there."""

    def __str__(self) -> str:
        """Return the sentence without a number."""
        return str(self.strerror)


@contextmanager
def renamed_when_whole(path: str | Path) -> Iterator[Path]:
    """Yield a file beside a path, to be written, and rename it to the path at the end.

    An exception leaves what was at the path before, and nothing beside it. The content is on the disk before the name
    is, so that a power failure does not leave the name without it.

    Raises:
        DiskFullError: naming the file and the space that is left.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with told_when_full(path):
        try:
            yield partial
            _on_the_disk(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def make_folders(folders: Iterable[str | Path]) -> None:
    """Make folders; raise a ValueError if one cannot be made or written."""
    for folder in map(Path, folders):
        probe = folder / f".writable.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(f"folder {folder} cannot be written ({error.strerror}): choose another one") from error


def refuse_unwritable(folders: Iterable[str | Path]) -> None:
    """Raise a ValueError for a folder that could not be made or written; nothing is made."""
    for folder in map(Path, folders):
        there = nearest_existing(folder)
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            reason = "no permission, or a read-only disk" if there.is_dir() else f"{there} is a file"
            raise ValueError(f"folder {folder} cannot be written ({reason}): choose another one")


def nearest_existing(folder: str | Path) -> Path:
    """Return the folder, or the nearest above it that is there."""
    path = Path(os.path.abspath(folder))
    return next(parent for parent in (path, *path.parents) if os.path.exists(parent))  # no error for too long names


def in_words(size: float) -> str:
    """Return a number of bytes as people read it, e.g. ``1.5 GiB``."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def size_and_time(path: str | Path) -> tuple[int, int] | None:
    """Return the bytes of a file and when it was changed, in nanoseconds; None where there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def look_at_all(look: Callable[[str], T], paths: Sequence[str]) -> list[T]:
    """Return what a look at each file says. Threads look, as on a network drive each look is a wait."""

    def part(start: int) -> list[T]:
        return [look(path) for path in paths[start : start + FILES_PER_TASK]]

    with ThreadPoolExecutor(THREADS) as pool:
        return [found for founds in pool.map(part, range(0, len(paths), FILES_PER_TASK)) for found in founds]


@contextmanager
def told_when_full(path: str | Path) -> Iterator[None]:
    """Raise a DiskFullError for a file, if what is done in the block fails because its disk is full."""
    try:
        yield
    except Exception as error:
        full = _full_disk(error)
        if full is None or isinstance(error, DiskFullError):  # an inner file's error says it already
            raise
        raise _disk_full(Path(path), full) from error


def _on_the_disk(path: Path) -> None:
    file = os.open(path, os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _full_disk(error: BaseException | None) -> OSError | None:
    """Return the error of a full disk behind an error: ``torch.save`` raises one of its own on top of it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


def _disk_full(path: Path, error: OSError) -> DiskFullError:
    left = ""
    if error.errno == errno.ENOSPC:
        left = f", {in_words(shutil.disk_usage(path.parent).free)} are left"
    own = f".{os.getpid()}"
    if path.name.endswith(own):  # a file within a file
        path = path.with_name(path.name.removesuffix(own).removeprefix("."))
    return DiskFullError(
        error.errno,
        f"there is no room for {path} ({os.strerror(error.errno or 0)}{left}): make room and run the same command "
        "again; what was written before is kept",
    )


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
