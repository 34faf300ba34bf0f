"""Posteriors of images in memory-mapped files, which phase two reads instead of encoding images at every step."""

from __future__ import annotations

import errno
import json
import logging
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from medfusion_monai.data.training.latent_identity import differences, identity_digits
from medfusion_monai.runtime.errors import is_out_of_memory
from medfusion_monai.runtime.files import DISK_FULL, in_words, renamed_when_whole
from medfusion_monai.runtime.shared_locks import alone, hold

logger = logging.getLogger(__name__)

IDENTITY = "store.json"
SHARD = "moments-{:05d}.npy"
PARTIAL = ".moments-*"
OWN_FILES = ("moments-*.npy", PARTIAL, f".{IDENTITY}.*")
SECONDS_OF_A_DAY = 86_400
ENTRIES_PER_SHARD, MAX_SHARDS = 512, 256
LARGEST = float(np.finfo(np.float16).max)


class LatentStore(Dataset):
    """Posteriors by index, read from files of several hundred each (shards).

    Each identity has its own folder, since concurrent runs may have other weights or images. A lock prevents deletion
    by other runs while the object exists.

    Args:
        folder: folder of all stores.
        identity: from :func:`~medfusion_monai.data.training.latent_identity.latent_identity`.
        labels: labels of all entries, in order.
        shape: shape of an entry's moments, (2 * latent_channels, h, w): mean and log-variance.

    Raises:
        ValueError: if the folder cannot be created.
    """

    def __init__(
        self, folder: str | Path, identity: Mapping[str, Any], labels: Sequence[int], shape: Sequence[int]
    ) -> None:
        self.root, self.identity = Path(folder), dict(identity)
        self.digits = identity_digits(identity)
        self.folder = self.root / self.digits
        self.labels, self.shape = [int(label) for label in labels], tuple(shape)
        # Each mapped shard keeps a file open; many systems limit a process to 1,024.
        self.shard_size = max(ENTRIES_PER_SHARD, -(-len(self.labels) // MAX_SHARDS))
        self.shard_count = -(-len(self.labels) // self.shard_size)
        self._shards: dict[int, np.ndarray] = {}
        self._in_use: Any = None
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._in_use = hold(self._lock(self.digits))
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return entry ``index`` from 0 on: ``moments``, float32 of the shape of an entry, and ``label``.

        Raises:
            ValueError: if its shard is missing or damaged.
        """
        number, offset = divmod(index, self.shard_size)
        if number not in self._shards:
            try:
                self._shards[number] = self._open(number)
            except (OSError, ValueError, EOFError) as error:
                if is_out_of_memory(error):
                    raise
                raise ValueError(
                    f"latents {self._path(number)} are missing or damaged ({error}): run the same command again to "
                    "encode them again"
                ) from error
        moments = torch.from_numpy(self._shards[number][offset].astype(np.float32))
        return {"moments": moments, "label": self.labels[index]}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out open files: a data loading worker opens its own, and its parent holds the lock."""
        return {**self.__dict__, "_shards": {}, "_in_use": None}

    def entries(self, number: int) -> range:
        """Return the indices of the entries of a shard."""
        return range(number * self.shard_size, min(len(self), (number + 1) * self.shard_size))

    def missing(self) -> list[int]:
        """Return the numbers of missing and damaged shards."""
        return [number for number in range(self.shard_count) if not self._is_whole(number)]

    def bytes_of(self, shards: Iterable[int]) -> int:
        """Return the disk space of shards in bytes."""
        return sum(len(self.entries(number)) for number in shards) * int(np.prod(self.shape)) * 2

    def prepare(self) -> list[int]:
        """Prepare the folder for writing, and return the numbers of missing shards. For one process of a run.

        Stores of other identities are reported in a warning, and deleted unless in use.

        Raises:
            ValueError: if the folder cannot be written, or the disk has too little space.
        """
        self._drop_others()
        missing = self.missing()
        if not missing:
            return []
        try:
            self._drop_leftovers()
            with renamed_when_whole(self.folder / IDENTITY) as partial:
                partial.write_text(json.dumps(self.identity, indent=1) + "\n", encoding="utf-8")
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise self._write_error(error, missing) from error
        if self.bytes_of(missing) > free:
            raise self._full(missing)
        return missing

    def write(self, number: int, moments: np.ndarray) -> None:
        """Write a shard atomically.

        Args:
            number: number of the shard.
            moments: float32, one row per entry.

        Raises:
            ValueError: if a value does not fit float16, the disk is full, or the folder cannot be written.
        """
        self._check(number, moments)
        try:
            with renamed_when_whole(self._path(number)) as partial, open(partial, "wb") as file:
                np.save(file, moments.astype(np.float16), allow_pickle=False)
        except OSError as error:
            raise self._write_error(error, self.missing()) from error

    def _check(self, number: int, moments: np.ndarray) -> None:
        expected = (len(self.entries(number)), *self.shape)
        if moments.shape != expected:
            raise ValueError(
                f"the autoencoder returned moments of shape {moments.shape} instead of {expected}: check image_size, "
                "latent_channels and downsampling_factor"
            )
        unfit = ~(np.abs(moments) <= LARGEST).all(axis=(1, 2, 3))  # includes NaN
        if unfit.any():
            entry = self.entries(number)[int(np.flatnonzero(unfit)[0])]
            image = entry // (1 + len(self.identity["flips"]))
            raise ValueError(
                f"the posterior of image {image} (counted from 0) is not finite or above {LARGEST:.0f}, the limit of "
                "float16: check the image and the weights of the autoencoder, or train with --cache_latents false"
            )

    def _path(self, number: int) -> Path:
        return self.folder / SHARD.format(number)

    def _lock(self, digits: str) -> Path:
        return self.root / f".{digits}.lock"  # outside the folder: deleting a lock would allow a second holder

    def _open(self, number: int) -> np.ndarray:
        return np.load(self._path(number), mmap_mode="r", allow_pickle=False)

    def _is_whole(self, number: int) -> bool:
        try:
            shard = self._open(number)
        except (OSError, ValueError, EOFError):
            return False
        return shard.shape == (len(self.entries(number)), *self.shape) and shard.dtype == np.float16

    def _drop_others(self) -> None:
        for path in sorted(self.root.glob(f"*/{IDENTITY}")):
            folder, found = path.parent, _read_identity(path)
            if folder == self.folder or found is None or identity_digits(found) != folder.name:
                continue
            with alone(self._lock(folder.name)) as unused:
                fate = "deleted" if unused and _delete(folder) else "kept, since another run may be using them"
            reason = ", ".join(differences(found, self.identity))
            logger.warning("latents in %s were made from %s: not used, and %s", folder, reason, fate)

    def _drop_leftovers(self) -> None:
        """Delete half-written files of killed runs; recent ones may belong to a concurrent run."""
        for path in self.folder.glob(PARTIAL):
            if time.time() - path.stat().st_mtime > SECONDS_OF_A_DAY:
                path.unlink(missing_ok=True)

    def _write_error(self, error: OSError, missing: Sequence[int]) -> ValueError:
        return self._full(missing, error) if error.errno in DISK_FULL else self._unwritable(error)

    def _full(self, missing: Sequence[int], error: OSError | None = None) -> ValueError:
        free = in_words(shutil.disk_usage(self.folder).free)
        left = "your quota is used up" if error and error.errno == errno.EDQUOT else f"{free} free"
        return ValueError(
            f"no disk space for the latents in {self.folder}: {in_words(self.bytes_of(missing))} more needed, {left}. "
            "Free some space and start again (existing files are kept), choose another disk with --latents_dir, or "
            "encode at every step with --cache_latents false"
        )

    def _unwritable(self, error: OSError) -> ValueError:
        return ValueError(
            f"latents cannot be written to {self.root} ({error.strerror or error}): choose another --latents_dir, or "
            "encode at every step with --cache_latents false"
        )


def _read_identity(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _delete(folder: Path) -> bool:
    """Delete a store's own files, and the folder if it is empty then; return whether this succeeded."""
    try:
        for pattern in OWN_FILES:
            for path in folder.glob(pattern):
                path.unlink()
        (folder / IDENTITY).unlink()
        folder.rmdir()
    except OSError:
        return False
    return True
