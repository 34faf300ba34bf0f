"""Image files that cannot be read: the training stops and names them, or goes on without them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from monai.data import CacheDataset

from medfusion_monai.data.images import check_images, find_unreadable, list_problems
from medfusion_monai.data.splits import DataError
from medfusion_monai.diffusion.randomness import derive_seed
from medfusion_monai.errors import first_cause

logger = logging.getLogger(__name__)

POLICIES = ("stop", "skip")


def check_policy(unreadable: Any) -> str:
    """Give the key ``unreadable``; raise a ValueError unless it is ``stop`` or ``skip``."""
    if unreadable not in POLICIES:
        raise ValueError(
            f"unreadable must be stop (an image that cannot be read ends the training) or skip (it is left out), "
            f"received {unreadable!r}"
        )
    return unreadable


def unreadable_images(paths: Sequence[str], unreadable: str = "stop", **reading: Any) -> list[str]:
    """Decode all images and give the paths of those that are to be left out.

    Args:
        paths: the files.
        unreadable: ``stop`` raises if there are any, ``skip`` warns.
        reading: keywords of ``check_images``, e.g. ``channels``.

    Raises:
        DataError: with ``stop``, if at least one image cannot be read; the first ten are listed.
    """
    if check_policy(unreadable) == "stop":
        check_images(paths, **reading)
        return []
    problems = find_unreadable(paths, **reading)
    if problems:
        title = f"{len(problems)} of {len(paths)} images cannot be used and are left out"
        logger.warning(list_problems(title, list(problems.values())))
    return list(problems)


def without_images(
    items: Sequence[Mapping[str, Any]], paths: Sequence[str], class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Give the items of a datalist whose images are not among the paths.

    Raises:
        DataError: if a class that had images has none left.
    """
    left_out = set(paths)
    kept = [dict(item) for item in items if item["image"] not in left_out]
    emptied = {item["label"] for item in items} - {item["label"] for item in kept}
    if emptied:
        names = [class_names[label] for label in sorted(emptied)]
        raise DataError(
            f"of {names} no image of a split can be read ({len(left_out)} images cannot be used in all, they are "
            "listed above): replace these files, or prepare the data again"
        )
    return kept


class ReadableDataset(CacheDataset):
    """A ``CacheDataset`` of a datalist that keeps a training going when files go bad under it, or says which did.

    With ``unreadable="skip"`` the place of an image that cannot be read is taken by another of its class, chosen
    at random from the index of the place, so that labels stay as they are, every run chooses alike, and a row of bad
    files does not make one image stand for them all.

    Args:
        data: items with ``image`` (path) and ``label``.
        transform: deterministic transforms.
        unreadable: ``stop`` or ``skip``.
        kwargs: keywords of ``CacheDataset``.

    Raises:
        DataError: naming the file that cannot be read, or with ``skip`` if a class has no image left.
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Any = None, unreadable: str = "stop", **kwargs: Any
    ) -> None:
        self.unreadable = check_policy(unreadable)
        self.bad: dict[int, str] = {}
        super().__init__(data, transform, **kwargs)

    def _load_cache_item(self, idx: int) -> Any:
        return self._read(super()._load_cache_item, idx)

    def _transform(self, index: int) -> Any:
        return self._read(super()._transform, index)

    def _read(self, read: Callable[[int], Any], index: int) -> Any:
        for candidate in self._candidates(index):
            if candidate not in self.bad:
                try:
                    return read(candidate)
                except Exception as error:
                    self._note(candidate, error)
        raise DataError(f"no image of label {self.data[index]['label']} can be read, e.g. {self.bad[index]}")

    def _candidates(self, index: int) -> Iterator[int]:
        yield index
        label = self.data[index]["label"]
        others = [other for other, item in enumerate(self.data) if item["label"] == label and other != index]
        yield from np.random.default_rng(derive_seed("stand-in", index)).permutation(others).astype(int).tolist()

    def _note(self, index: int, error: Exception) -> None:
        cause = first_cause(error)
        if not isinstance(cause, DataError):
            raise error
        if self.unreadable == "stop":
            raise cause from None
        self.bad[index] = str(cause)
        logger.warning(
            "image became unreadable, another of its class takes its place (%d so far in this process): %s",
            len(self.bad),
            cause,
        )
