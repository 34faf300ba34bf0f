"""Which images a list holds, by their pixels: the same for a copy of the files, another for other images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from medfusion_monai.data.preparing.duplicates import find_duplicates, refuse_contradictions
from medfusion_monai.data.reading.images import inspect_images
from medfusion_monai.runtime.files import file_sha256

PIXELS = "pixels"
"""Key of the checksum in a datalist's entries; see ``pixel_digest``."""
MISSING = "missing"
"""Checksum of a file that does not exist."""


def digests_of(items: Sequence[Mapping[str, Any]], modalities: Sequence[str] | None = None) -> list[str]:
    """Return the checksum of each item's pixels: the recorded one, or else that of the decoded file.

    A file that only a custom reader can decode has the checksum of its bytes, a missing one :data:`MISSING`.

    Args:
        items: entries of a datalist with ``image`` (path) and, where it is known, ``pixels``.
        modalities: values of Modality that DICOM files may have; None accepts all projections and photographs.
    """
    unknown = [item["image"] for item in items if not item.get(PIXELS)]
    found, problems = inspect_images(unknown, modalities=modalities)
    found |= {path: f"file {file_sha256(path)}" if os.path.isfile(path) else MISSING for path in problems}
    return [item.get(PIXELS) or found[os.fspath(item["image"])] for item in items]


def record_digests(items: Sequence[MutableMapping[str, Any]], digests: Sequence[str]) -> None:
    """Set ``pixels`` of each item."""
    for item, digest in zip(items, digests, strict=True):
        item[PIXELS] = digest


def fingerprint(items: Sequence[Mapping[str, Any]], ordered: bool = False) -> str:
    """Return 32 digits that identify a list of images and labels by their pixels, wherever its files are.

    Args:
        items: entries of a datalist.
        ordered: whether another order is another list.
    """
    lines = [f"{digest}={item['label']}" for digest, item in zip(digests_of(items), items, strict=True)]
    return hashlib.sha256("\n".join(lines if ordered else sorted(lines)).encode()).hexdigest()[:32]


def refuse_repeats(
    splits: Mapping[str, Sequence[Mapping[str, Any]]], class_names: Sequence[str] | Mapping[int, str]
) -> None:
    """Raise if images with equal pixels are in two splits or have two labels.

    Args:
        splits: items by split; those without ``pixels``, and missing files, are skipped.
        class_names: names by label.

    Raises:
        DataError: with the first ten such groups.
    """
    known = [
        (name, item) for name, items in splits.items() for item in items if item.get(PIXELS) not in (None, "", MISSING)
    ]
    kinds = {kind: kind for kind in {(name, item["label"]) for name, item in known}}  # one object each, not a million
    first: dict[str, tuple[str, int]] = {}
    if any(first.setdefault(item[PIXELS], kinds[name, item["label"]]) != (name, item["label"]) for name, item in known):
        refuse_contradictions(find_duplicates([{**item, "split": name} for name, item in known]), class_names)
