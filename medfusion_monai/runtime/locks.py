"""One run at a time in a folder: a second one is refused before it writes anything, with the owner of the lock."""

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
WAIT = 0.1  # seconds; a run that is just ending deletes the file, and a second attempt creates a new one
LEFTOVER = re.compile(r"\.+.+\.(pt|json|csv|png|gz|npy|npz|features|sha256|html|md|svg|safetensors)(\.\d+)+")
"""Names of the temporary files of ``renamed_when_whole``."""

_held: dict[Path, FileLock] = {}


class FolderInUseError(ValueError):
    """Another run writes into the folder."""


def refuse_used(folders: Iterable[str | Path]) -> None:
    """Raise a FolderInUseError if another process writes into one of the folders, without creating anything.

    For the start of a run, long before ``take_folders``. Only the first of several processes checks, since it may have
    locked the folders before the others arrive.
    """
    if rank() == 0:
        for folder in _distinct(folders):
            if folder not in _held and (folder / LOCK).is_file():
                lock = _lock(folder)
                if lock is not None:
                    lock.release()


def take_folders(folders: Iterable[str | Path]) -> None:
    """Lock folders against other runs, and delete half-written files of a killed run.

    The system releases the lock when this process ends, even if it is killed; ``leave_folders`` releases it earlier.
    A process may lock a folder again. A warning is logged if the file system has no locks. For the first process of a
    run; the folders must exist.

    Raises:
        FolderInUseError: with the folder and the process, host and time of its lock; no folder is locked then.
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
    """Create folders and lock them against other runs, in the first process of a run.

    Raises:
        ValueError: in every process, if a folder cannot be created or is in use by another run.
    """
    wanted = list(folders)
    from_first(lambda: make_folders(wanted))
    from_first(lambda: take_folders(wanted))


def leave_folders(folders: Iterable[str | Path] | None = None) -> None:
    """Release the locks of folders, by default of all that this process holds."""
    for folder in list(_held) if folders is None else _distinct(folders):
        lock = _held.pop(folder, None)
        if lock is not None:
            try:
                (folder / LOCK).unlink(missing_ok=True)  # before the release: later it may be another run's
            except OSError:  # an unlocked file does no harm
                logger.debug("%s could not be deleted", folder / LOCK)
            lock.release()


def _lock(folder: Path) -> FileLock | None:
    """Lock a folder; return None if the file system has no locks.

    A soft lock is not an alternative: its file remains after a kill and would block the next run.
    """
    lock = FileLock(folder / LOCK, timeout=WAIT, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise FolderInUseError(_refusal(folder)) from None
    except OSError as error:
        logger.warning(
            "folder %s cannot be locked (%s): a second run would write the same files without an error",
            folder,
            error.strerror or error,
        )
        return None
    return lock


def _refusal(folder: Path) -> str:
    try:
        holder = json.loads((folder / LOCK).read_text(encoding="utf-8"))
        who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # not written yet
        who = "another process"
    return (
        f"folder {folder} is in use by another run ({who}): both would write the same files. Wait until it ends, stop "
        "it, or choose other folders, e.g. with --output_dir and --model_dir"
    )


def _write_holder(folder: Path) -> None:
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
    try:
        (folder / LOCK).write_text(f"{json.dumps(holder)}\n", encoding="utf-8")
    except OSError:  # e.g. a full disk: the lock works without an owner
        logger.debug("the owner of %s could not be written", folder / LOCK)


def _delete_leftovers(folder: Path) -> None:
    """Delete half-written files: with the lock held, no other run is writing them."""
    for path in folder.iterdir():
        if LEFTOVER.fullmatch(path.name) and path.is_file():
            logger.info("deleting %s, a half-written file of a killed run", path.name)
            path.unlink(missing_ok=True)


def _distinct(folders: Iterable[str | Path]) -> list[Path]:
    return sorted({Path(folder).resolve() for folder in folders})


atexit.register(leave_folders)  # an error that ends the program leaves no lock file
if hasattr(os, "register_at_fork"):  # a data loading worker must not release its parent's locks when it ends
    os.register_at_fork(after_in_child=_held.clear)
