"""Shares of the classes in training and in a set of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from medfusion_monai.data.preparing.splits import DataError, apportion
from medfusion_monai.runtime.seeds import derive_seed


def parse_class_shares(class_shares: Any, number: int, word: str) -> str | list[float] | None:
    """Check the key ``class_shares``.

    Args:
        class_shares: None, the word, or a list of shares.
        number: required number of shares.
        word: the only accepted text.

    Returns:
        None, the word, or the shares, which sum to 1.

    Raises:
        ValueError: for another text, another number of shares, and shares that are negative or do not sum to 1.
    """
    if class_shares is None or class_shares == word:
        return class_shares
    shares = list(class_shares) if isinstance(class_shares, list | tuple) else []
    if len(shares) != number:
        found = f"{len(shares)} shares" if shares else repr(class_shares)
        raise ValueError(
            f"class_shares must be {word}, a list of {number} shares (one per class, in label order), or unset; "
            f"received {found}"
        )
    if not all(_is_share(share) for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"class_shares must be numbers of 0 or more that sum to 1, received {class_shares}")
    return [share / sum(shares) for share in shares]


def true_shares(labels: Sequence[int], number: int) -> list[float]:
    """Return the share of each of ``number`` classes among labels."""
    return [count / len(labels) for count in np.bincount(labels, minlength=number).tolist()]


def training_shares(class_shares: Any, class_names: Sequence[str], labels: Sequence[int]) -> list[float] | None:
    """Return the share of each class in training, or None for that of the data.

    Args:
        class_shares: None, ``equal``, or a share for each class in label order.
        class_names: names in label order.
        labels: labels of the training images.

    Raises:
        ValueError: as ``parse_class_shares``.
        DataError: if a class has no images, unless a list of shares has 0 for it.
    """
    chosen = parse_class_shares(class_shares, len(class_names), "equal")
    shares = chosen if isinstance(chosen, list) else [1 / len(class_names)] * len(class_names)
    counts = np.bincount(labels, minlength=len(class_names))
    empty = [name for name, share, count in zip(class_names, shares, counts, strict=True) if share and not count]
    if empty:
        raise DataError(
            f"classes {empty} have no training images: add images of them, remove them from class_names, or pass "
            "class_shares as a list with share 0 for them"
        )
    return None if chosen is None else shares


def balanced_order(labels: np.ndarray, shares: Sequence[float], seed: int, pass_number: int) -> np.ndarray:
    """Return the order of a pass with given shares of the classes.

    Each pass has the same counts, which differ from the shares by less than one image (a class with a share has at
    least one). A class is spread evenly over the pass: the j-th of its n images is between j/n and (j+1)/n. Within a
    class all images are drawn in random order before one is drawn again, also across passes.

    Args:
        labels: labels of all images, (number of images,).
        shares: shares of the classes, in label order; a class with a share above 0 has images.
        seed: seed of the run.
        pass_number: from 0 on.

    Returns:
        Indices (len(labels),) of images.
    """
    spread = np.random.default_rng(derive_seed("balanced order", seed, pass_number))
    drawn, places = [], []
    for label, count in enumerate(apportion(len(labels), shares, at_least=1)):
        images = np.flatnonzero(labels == label)
        drawn.append(_draw(images, count * pass_number, count, seed, label))
        places.append((np.arange(count) + spread.random(count)) / max(count, 1))
    return np.concatenate(drawn)[np.argsort(np.concatenate(places), kind="stable")]


def _draw(images: np.ndarray, first: int, count: int, seed: int, label: int) -> np.ndarray:
    """Return positions ``first`` to ``first + count`` of an endless sequence of shuffles of the images of a class."""
    if count == 0:
        return images[:0]
    rounds = range(first // len(images), (first + count - 1) // len(images) + 1)
    sources = [np.random.default_rng(derive_seed("class order", seed, label, number)) for number in rounds]
    row = np.concatenate([source.permutation(images) for source in sources])
    start = first - rounds.start * len(images)
    return row[start : start + count]


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
