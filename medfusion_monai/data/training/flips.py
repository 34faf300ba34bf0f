"""Flips of images as separate entries, which can be encoded in advance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch.utils.data import Dataset

Value = TypeVar("Value")

FLIPS: dict[str, tuple[int, ...]] = {"horizontal": (-1,), "vertical": (-2,), "both": (-2, -1)}


def check_flips(flips: Any) -> list[str]:
    """Return the key ``latent_flips`` as a list.

    Raises:
        ValueError: unless it is a list of different names among ``horizontal``, ``vertical`` and ``both``.
    """
    names = list(flips) if isinstance(flips, list | tuple) else None
    if names is None or any(name not in FLIPS for name in names) or len(set(names)) != len(names):
        raise ValueError(
            f"latent_flips must be a list with any of {', '.join(FLIPS)}, each once, or [] for none; received {flips!r}"
        )
    return names


def for_each_variant(values: Sequence[Value], flips: Sequence[str]) -> list[Value]:
    """Repeat the value of an image, e.g. its label, for each of its entries in a :class:`FlippedDataset`."""
    return [value for value in values for _ in range(1 + len(flips))]


class FlippedDataset(Dataset):
    """A dataset with a separate entry for each flip of an image.

    With ``F = 1 + len(flips)``, entry ``i`` is image ``i // F``: unchanged if ``i % F`` is 0, else flipped by
    ``flips[i % F - 1]``.

    Args:
        dataset: items are dictionaries with ``image`` (C, H, W).
        flips: any of ``horizontal`` (exchanges left and right), ``vertical`` and ``both``.

    Raises:
        ValueError: for unknown and repeated flips.
    """

    def __init__(self, dataset: Any, flips: Sequence[str] = ()) -> None:
        self.dataset, self.flips = dataset, check_flips(flips)
        self._last: tuple[int, dict[str, Any]] = (-1, {})

    def __len__(self) -> int:
        """Return the number of entries: images times variants."""
        return len(self.dataset) * (1 + len(self.flips))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return entry ``index`` from 0 on, with all keys of the dataset's item."""
        number, variant = divmod(index, 1 + len(self.flips))
        item = self._item(number)
        return item if variant == 0 else {**item, "image": item["image"].flip(FLIPS[self.flips[variant - 1]])}

    def _item(self, number: int) -> dict[str, Any]:
        if not self.flips:
            return self.dataset[number]
        if self._last[0] != number:  # in sequential reading each image is decoded once for all its variants
            self._last = number, self.dataset[number]
        return self._last[1]
