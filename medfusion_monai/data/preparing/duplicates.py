"""Images with equal pixels: found, refused if their labels or splits differ, and kept in one split."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.data.reading.images import list_problems

logger = logging.getLogger(__name__)


def find_duplicates(records: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the groups of records with equal pixels, each sorted by image.

    Args:
        records: mappings with ``image``, a path, and ``pixels``, the ``pixel_digest`` of the image. Resized, cropped,
            rotated or recompressed copies have other digests.
    """
    groups = defaultdict(list)
    for record in sorted(records, key=lambda record: os.fspath(record["image"])):
        groups[record["pixels"]].append(record)
    return [group for group in groups.values() if len(group) > 1]


def refuse_contradictions(
    groups: Sequence[Sequence[Mapping[str, Any]]], class_names: Sequence[str] | Mapping[int, str]
) -> None:
    """Raise if equal images have different labels or given splits.

    Args:
        groups: from :func:`find_duplicates`.
        class_names: names by label.

    Raises:
        DataError: with the first ten such groups.
    """
    for key, what in (("label", "labels"), ("split", "splits")):
        odd = [group for group in groups if len({record.get(key) for record in group}) > 1]
        if odd:
            lines = [
                " = ".join(
                    f"{record['image']} ({class_names[record[key]] if key == 'label' else record[key]})"
                    for record in group
                )
                for group in odd
            ]
            report = list_problems(f"{len(odd)} image(s) occur more than once, with different {what}", lines)
            raise DataError(f"{report}\nKeep the correct one of each.")


def link_patients(records: Sequence[dict[str, Any]], groups: Sequence[Sequence[Mapping[str, Any]]]) -> int:
    """Set ``group`` of each record, equal for patients who share an image, and warn about these images.

    Args:
        records: mappings with ``patient``; ``group`` becomes the first name among the linked patients.
        groups: from :func:`find_duplicates`.

    Returns:
        The number of images that repeat another one.
    """
    leader: dict[str, str] = {}

    def lead(patient: str) -> str:
        while patient in leader:
            patient = leader[patient]
        return patient

    for group in groups:
        leaders = sorted({lead(record["patient"]) for record in group})
        leader.update(dict.fromkeys(leaders[1:], leaders[0]))
    for record in records:
        record["group"] = lead(record["patient"])
    repeats = sum(len(group) - 1 for group in groups)
    if repeats:
        title = f"{repeats} image(s) repeat the pixels of another one; they and their patients are kept in one split"
        pairs = [" = ".join(os.fspath(record["image"]) for record in group) for group in groups]
        logger.warning("%s", list_problems(title, pairs, limit=5))
    return repeats
