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
    """There is no disk space for a file; an earlier version of it is kept."""

    def __str__(self) -> str:
        """Return the message without the error number."""
        return str(self.strerror)


@contextmanager
def renamed_when_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file beside a path, and rename it to the path at the end.

    After an exception the earlier file is unchanged, and the temporary file is deleted. The content is flushed before
    renaming, since a power failure could otherwise leave an empty file.

    Raises:
        DiskFullError: with the file and the free space.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with reported_when_full(path):
        try:
            yield partial
            _flush(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def make_folders(folders: Iterable[str | Path]) -> None:
    """Create folders; raise a ValueError if one cannot be created or written."""
    for folder in map(Path, folders):
        probe = folder / f".writable.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(f"folder {folder} cannot be written ({error.strerror}): choose another one") from error


def refuse_unwritable(folders: Iterable[str | Path]) -> None:
    """Raise a ValueError for a folder that cannot be created or written, without creating it."""
    for folder in map(Path, folders):
        there = nearest_existing(folder)
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            reason = "no permission, or a read-only disk" if there.is_dir() else f"{there} is a file"
            raise ValueError(f"folder {folder} cannot be written ({reason}): choose another one")


def nearest_existing(folder: str | Path) -> Path:
    """Return the folder, or its nearest existing parent."""
    path = Path(os.path.abspath(folder))
    return next(parent for parent in (path, *path.parents) if os.path.exists(parent))  # accepts names that are too long


def in_words(size: float) -> str:
    """Return a number of bytes with its unit, e.g. ``1.5 GiB``."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def size_and_time(path: str | Path) -> tuple[int, int] | None:
    """Return the size of a file in bytes and its time of change in nanoseconds, or None if it does not exist."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def look_at_all(look: Callable[[str], T], paths: Sequence[str]) -> list[T]:
    """Call a function for each path, in threads, since each call waits on a network drive."""

    def part(start: int) -> list[T]:
        return [look(path) for path in paths[start : start + FILES_PER_TASK]]

    with ThreadPoolExecutor(THREADS) as pool:
        return [found for founds in pool.map(part, range(0, len(paths), FILES_PER_TASK)) for found in founds]


@contextmanager
def reported_when_full(path: str | Path) -> Iterator[None]:
    """Raise a DiskFullError for a file if the block fails because the disk is full."""
    try:
        yield
    except Exception as error:
        full = _full_disk(error)
        if full is None or isinstance(error, DiskFullError):  # already reported for an inner file
            raise
        raise _disk_full(Path(path), full) from error


def _flush(path: Path) -> None:
    file = os.open(path, os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _full_disk(error: BaseException | None) -> OSError | None:
    """Return the underlying error of a full disk: ``torch.save`` raises an error of its own on top."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


def _disk_full(path: Path, error: OSError) -> DiskFullError:
    left, advice = "", "free some space"
    if error.errno == errno.ENOSPC:
        left = f", {in_words(shutil.disk_usage(path.parent).free)} free"
        if os.statvfs(path.parent).f_ffree == 0 < os.statvfs(path.parent).f_files:
            left, advice = ", no inodes free", "delete files, since the disk has room for no more of them,"
    own = f".{os.getpid()}"
    if path.name.endswith(own):  # a file within a file
        path = path.with_name(path.name.removesuffix(own).removeprefix("."))
    return DiskFullError(
        error.errno,
        f"no disk space for {path} ({os.strerror(error.errno or 0)}{left}): {advice} and run the same command "
        "again; existing files are kept",
    )


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
