"""One run at a time in a folder: a second one is refused before it writes anything, in words that name the first."""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import socket
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from medfusion_monai.runtime.distributed import from_first, rank
from medfusion_monai.runtime.files import make_folders

logger = logging.getLogger(__name__)

LOCK = ".run.lock"
WAIT = 0.1  # seconds; another run that is just leaving deletes the file, so that a second try takes a new one
LEFTOVER = re.compile(r"\.+.+\.(pt|json|csv|png|gz|npy|npz|features|sha256|html|md|svg|safetensors)(\.\d+)+")
"""Names that ``renamed_when_whole`` gives to files that are being written."""

_held: dict[Path, FileLock] = {}


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
                lock = _lock(folder)
                if lock is not None:
                    lock.release()


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
            lock = _lock(folder)
        except FolderInUseError:
            leave_folders(taken)
            raise
        if lock is not None:
            _held[folder] = lock
            taken.append(folder)
            _write_holder(folder)
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
        lock = _held.pop(folder, None)
        if lock is not None:
            try:
                (folder / LOCK).unlink(missing_ok=True)  # while it is held: afterwards it may be another run's
            except OSError:  # the file may stay, nobody holds it
                logger.debug("%s could not be deleted", folder / LOCK)
            lock.release()


def _lock(folder: Path) -> FileLock | None:
    """Lock a folder; None where there are no locks.

    A soft lock, a file that a kill leaves behind, is not a way out: it would keep the folder from the next run.
    """
    lock = FileLock(folder / LOCK, timeout=WAIT, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise FolderInUseError(_refusal(folder)) from None
    except OSError as error:
        logger.warning(
            "folder %s cannot be locked (%s): nothing keeps a second run from writing the same files",
            folder,
            error.strerror or error,
        )
        return None
    return lock


def _refusal(folder: Path) -> str:
    try:
        holder = json.loads((folder / LOCK).read_text(encoding="utf-8"))
        who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has just begun
        who = "another process"
    return (
        f"folder {folder} is in use by another run ({who}): both would write the same files. Wait until it ends, stop "
        "it, or choose other folders, e.g. by --output_dir and --model_dir"
    )


def _write_holder(folder: Path) -> None:
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
    try:
        (folder / LOCK).write_text(f"{json.dumps(holder)}\n", encoding="utf-8")
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
if hasattr(os, "register_at_fork"):  # a worker of a data loader must not leave its parent's folders when it ends
    os.register_at_fork(after_in_child=_held.clear)
