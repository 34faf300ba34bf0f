"""Unreadable image files: the training stops and reports them, or continues without them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from monai.data import Dataset
from monai.transforms import Compose

from medfusion_monai.data.pixels import PIXELS
from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.data.reading.images import decode_all, list_problems, pixel_digest
from medfusion_monai.data.reading.transforms import ReadImaged
from medfusion_monai.runtime.errors import first_cause
from medfusion_monai.runtime.files import size_and_time
from medfusion_monai.runtime.seeds import derive_seed

logger = logging.getLogger(__name__)

POLICIES = ("stop", "skip")


def check_policy(unreadable: Any) -> str:
    """Return the key ``unreadable``; raise a ValueError unless it is ``stop`` or ``skip``."""
    if unreadable not in POLICIES:
        raise ValueError(
            f"unreadable must be stop (an unreadable image ends the training) or skip (it is left out), "
            f"received {unreadable!r}"
        )
    return unreadable


class ReadableDataset(Dataset):
    """Images of a datalist, cached in memory up to a number, with a policy for unreadable files.

    With ``unreadable="skip"`` an unreadable image is replaced by another of its class, drawn with a seed derived from
    its index. Labels stay the same, each run draws the same image, and consecutive bad files get different ones.

    Args:
        data: items with ``image`` (path) and ``label``.
        transform: deterministic transforms.
        unreadable: ``stop`` or ``skip``.
        cache_num: number of images, from the first on, that stay in memory once read.

    Raises:
        DataError: for an unreadable file; with ``skip``, if a class has no image left.
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Any = None, unreadable: str = "stop", cache_num: int = 0
    ) -> None:
        self.unreadable = check_policy(unreadable)
        self.cache_num = cache_num
        self.bad: dict[int, str] = {}
        self._kept: dict[int, tuple[Any, tuple[int, int] | None]] = {}  # items; sizes and times of their files
        self._as_files_are = False
        self.digests: dict[int, str] = {}
        super().__init__(data, transform)

    def as_files_are(self) -> ReadableDataset:
        """Return the same images for one pass, in which an image is read again if its file has changed."""
        current = copy.copy(self)
        current.bad, current.cache_num, current._as_files_are = {}, 0, True
        return current

    def keep(self, indices: Sequence[int] | None = None) -> dict[int, str]:
        """Read images in threads, fill the cache, and return the error message of each unusable image.

        ``digests`` has the checksums of their pixels; an image that the datalist records with another one is unusable.

        Args:
            indices: indices of the images; None takes those that are cached.
        """
        chosen = range(min(self.cache_num, len(self.data))) if indices is None else indices
        wanted = [index for index in chosen if index not in self._kept and index not in self.bad]

        def problem(index: int) -> str | None:
            try:
                self._load(index, digest=True)
            except Exception as error:
                return str(_data_error(error))
            recorded, found = self.data[index].get(PIXELS), self.digests.get(index)
            if recorded and found and recorded != found:
                return f"{self.data[index]['image']}: holds other pixels than when the datalist was written."
            return None

        found = decode_all(problem, wanted, "read images")
        return {index: reason for index, reason in zip(wanted, found, strict=True) if reason is not None}

    def forget(self) -> None:
        """Release the images in memory."""
        self._kept.clear()

    def leave_out(self, indices: Sequence[int], class_names: Sequence[str]) -> None:
        """Remove images from the list.

        Raises:
            DataError: if a class has no images left.
        """
        left_out = set(indices)
        stay = [index for index in range(len(self.data)) if index not in left_out]
        emptied = {item["label"] for item in self.data} - {self.data[index]["label"] for index in stay}
        if emptied:
            names = [class_names[label] for label in sorted(emptied)]
            raise DataError(
                f"{names} have no readable images left in a split ({len(left_out)} unusable images, listed above): "
                "replace these files, or prepare the data again"
            )
        self._kept = {new: self._kept[old] for new, old in enumerate(stay) if old in self._kept}
        self.digests = {new: self.digests[old] for new, old in enumerate(stay) if old in self.digests}
        self.data = [self.data[index] for index in stay]

    def _transform(self, index: int) -> Any:
        for candidate in self._candidates(index):
            if candidate not in self.bad:
                try:
                    return self._load(candidate)
                except Exception as error:
                    self._note(candidate, error)
        label = self.data[index]["label"]
        raise DataError(f"no image of label {label} can be read, e.g. {self.bad[index]} Replace these files.")

    def _load(self, index: int, digest: bool = False) -> Any:
        """Return an image from memory or read it, taking the checksum of its pixels if asked for."""
        item, was = self._kept.get(index, (None, None))
        if item is not None and not self._as_files_are:
            return item
        now = size_and_time(self.data[index]["image"])
        if item is not None and now == was:
            return item
        item = self._digested(index) if digest else super()._transform(index)
        if index < self.cache_num:
            self._kept[index] = item, now
        return item

    def _digested(self, index: int) -> Any:
        """Read an image and record the checksum of its pixels, unless a custom reader decodes it."""
        if not isinstance(self.transform, Compose) or not isinstance(self.transform.transforms[0], ReadImaged):
            return super()._transform(index)
        item: Any = self.transform(self.data[index], end=1)
        self.digests[index] = pixel_digest(item["image"].numpy())
        return self.transform(item, start=1)

    def _candidates(self, index: int) -> Iterator[int]:
        yield index
        label = self.data[index]["label"]
        others = [other for other, item in enumerate(self.data) if item["label"] == label and other != index]
        yield from np.random.default_rng(derive_seed("stand-in", index)).permutation(others).astype(int).tolist()

    def _note(self, index: int, error: Exception) -> None:
        cause = _data_error(error)
        if self.unreadable == "stop":
            raise cause from None
        self.bad[index] = str(cause)
        logger.warning(
            "image became unreadable and is replaced by another of its class (%d so far in this process): %s",
            len(self.bad),
            cause,
        )


def check_readable(
    datasets: Sequence[ReadableDataset],
    class_names: Sequence[str],
    in_first_process: Callable[[Callable[[], Any]], Any] = lambda function: function(),
) -> None:
    """Read all images of data sets once, and refuse or leave out those that are unreadable.

    Args:
        datasets: data sets with the same ``unreadable``: ``stop`` raises, ``skip`` warns.
        class_names: in label order.
        in_first_process: calls a function in the first of several processes and returns its result in all.

    Raises:
        DataError: with ``stop``, for unreadable images (the first ten are listed); with ``skip``, if a class has no
            image left.
    """
    read = in_first_process(lambda: [(dataset.keep(range(len(dataset))), dataset.digests) for dataset in datasets])
    found = [reasons for reasons, _ in read]
    for dataset, (_, digests) in zip(datasets, read, strict=True):
        for index, digest in digests.items():  # of the items themselves, which others know as well
            dataset.data[index].setdefault(PIXELS, digest)
    problems = [reason for reasons in found for reason in reasons.values()]
    count = sum(map(len, datasets))
    if problems and datasets[0].unreadable == "stop":
        title = f"{len(problems)} of {count} images cannot be used"
        raise DataError(list_problems(title, problems) + "\nReplace or remove these files, or prepare the data again.")
    if problems:
        title = f"{len(problems)} of {count} images cannot be used and are left out"
        logger.warning(list_problems(title, problems))
    for dataset, reasons in zip(datasets, found, strict=True):
        dataset.leave_out(list(reasons), class_names)


def _data_error(error: Exception) -> DataError:
    """Return the error of an unreadable file; raise any other error."""
    cause = first_cause(error)
    if not isinstance(cause, DataError):
        raise error
    return cause
