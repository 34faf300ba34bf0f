"""One run at a time in a folder: a second one is told who is there, before it writes anything."""

from __future__ import annotations

import atexit
import errno
import json
import logging
import os
import re
import socket
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from medfusion_monai.distributed import from_first, rank
from medfusion_monai.files import make_folders

try:
    import fcntl
except ImportError:  # no POSIX system
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK = ".run.lock"
BUSY = (errno.EWOULDBLOCK, errno.EACCES)
LEFTOVER = re.compile(r"\.+.+\.(pt|json|csv|png|gz|npy|npz|features|sha256|html|md|svg|safetensors)(\.\d+)+")
"""Names that ``renamed_when_whole`` gives to files that are being written."""

_held: dict[Path, int] = {}  # to file descriptors: a forked process can close these without side effects


class FolderInUseError(ValueError):
    """Another run writes into the folder."""


def refuse_used(folders: Iterable[str | Path]) -> None:
    """Raise a FolderInUseError if a run of another process writes into one of the folders; nothing is made.

    For the start of a run, long before ``take_folders``. Of several processes the first looks, as the others may come
    when it has taken the folders.
    """
    if rank() == 0:
        for folder in _distinct(folders):
            if folder not in _held and (folder / LOCK).is_file():
                file = _lock(folder)
                if file is not None:
                    os.close(file)


def take_folders(folders: Iterable[str | Path]) -> None:
    """Keep other runs out of folders, and delete what a killed run had begun to write there.

    The system lifts the lock when this process ends, however it ends; ``leave_folders`` does earlier. A process may
    take a folder again. Where the file system knows no locks a warning says so. For the first process of a run, in
    folders that are there.

    Raises:
        FolderInUseError: naming the folder and who is there, since when; none of the folders is taken then.
    """
    taken: list[Path] = []
    for folder in _distinct(folders):
        if folder in _held:
            continue
        try:
            file = _lock(folder)
        except FolderInUseError:
            leave_folders(taken)
            raise
        if file is not None:
            _held[folder] = file
            taken.append(folder)
            _write_holder(file)
            _delete_leftovers(folder)


def use_folders(folders: Iterable[str | Path]) -> None:
    """Make folders and keep other runs out of them, in the first process of a run.

    Raises:
        ValueError: in every process, if a folder cannot be made or another run is there.
    """
    wanted = list(folders)
    from_first(lambda: make_folders(wanted))
    from_first(lambda: take_folders(wanted))


def leave_folders(folders: Iterable[str | Path] | None = None) -> None:
    """Let other runs into folders that this process holds, into all of them by default."""
    for folder in list(_held) if folders is None else _distinct(folders):
        file = _held.pop(folder, None)
        if file is not None:
            try:
                (folder / LOCK).unlink(missing_ok=True)  # before the lock is lifted: see _is_current
            except OSError:  # the file may stay, nobody holds it
                logger.debug("%s could not be deleted", folder / LOCK)
            os.close(file)


def _lock(folder: Path) -> int | None:
    """Lock a folder and give the file descriptor; None where there are no locks."""
    path = folder / LOCK
    while fcntl is not None:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            _warn(folder, error)
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            refusal = _refusal(folder, file) if error.errno in BUSY else None
            os.close(file)
            if refusal is not None:
                raise FolderInUseError(refusal) from None
            _warn(folder, error)
            return None
        if _is_current(path, file):
            return file
        os.close(file)
    return None


def _is_current(path: Path, file: int) -> bool:
    """Whether the file is still the one at the path: the run that held it deletes it before it lifts its lock."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


def _refusal(folder: Path, file: int) -> str:
    try:
        holder = json.loads(os.read(file, 4096))
        who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has just begun
        who = "another process"
    return (
        f"folder {folder} is in use by another run ({who}): both would write the same files. Wait until it ends, stop "
        "it, or choose other folders, e.g. by --output_dir and --model_dir"
    )


def _warn(folder: Path, error: OSError) -> None:
    logger.warning(
        "folder %s cannot be locked (%s): nothing keeps a second run from writing the same files",
        folder,
        error.strerror or error,
    )


def _write_holder(file: int) -> None:
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
    try:
        os.ftruncate(file, 0)
        os.write(file, f"{json.dumps(holder)}\n".encode())
    except OSError:  # a full disk: the lock holds without a name
        logger.debug("who holds a lock could not be noted")


def _delete_leftovers(folder: Path) -> None:
    """Delete half-written files: nobody else writes here, so those who began them are gone."""
    for path in folder.iterdir():
        if LEFTOVER.fullmatch(path.name) and path.is_file():
            logger.info("deleting %s, which a run that was killed had begun", path.name)
            path.unlink(missing_ok=True)


def _distinct(folders: Iterable[str | Path]) -> list[Path]:
    return sorted({Path(folder).resolve() for folder in folders})


atexit.register(leave_folders)  # an error that ends the program leaves nothing behind


def _forget() -> None:
    """In a forked process, e.g. a worker of a data loader: the lock is its parent's, and ends with the parent."""
    for file in _held.values():
        os.close(file)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
