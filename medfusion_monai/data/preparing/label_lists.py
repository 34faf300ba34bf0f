"""Tables that list several labels per image, as ``Effusion|Mass``, and the one class that each image gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medfusion_monai.data.preparing.splits import DataError

QUOTES = "'\" "


def split_labels(text: str, separator: str) -> list[str]:
    """Return the labels of a cell, without space, quotes and brackets, as in ``['Mass', 'No Finding']``."""
    parts = (part.strip().strip(QUOTES) for part in text.strip().strip("[]").split(separator))
    return [part for part in parts if part]


def unite_rows(path: Path, records: Sequence[Mapping[str, Any]], separator: str) -> list[dict[str, Any]]:
    """Return a record per image, whose ``labels`` are those of all its rows.

    Args:
        path: of the table.
        records: a mapping per row, with ``image``, ``value`` (the list of labels), and further keys.
        separator: between the labels of a cell.

    Raises:
        DataError: if rows of one image differ in another key, as the patient.
    """
    united: dict[Path, dict[str, Any]] = {}
    for record in records:
        shared = {key: value for key, value in record.items() if key != "value"}
        first = united.setdefault(record["image"], {**shared, "labels": []})
        different = [key for key, value in shared.items() if first[key] != value]
        if different:
            raise DataError(
                f"{path}: rows of image '{record['image']}' have different values of its {different[0]}: "
                f"{first[different[0]]!r} and {record[different[0]]!r}. Correct one of them."
            )
        first["labels"] += split_labels(record["value"], separator)
    return list(united.values())


def choose_listed(
    records: Sequence[Mapping[str, Any]], values: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Keep the images with exactly one of the chosen labels, as their ``value``; further labels do not matter.

    Args:
        records: mappings with ``labels``.
        values: the chosen labels.

    Returns:
        The records that are kept; and the numbers of images without any chosen label (``unlisted``) and with several
        (``ambiguous``), where there are any.

    Raises:
        DataError: for a label that no image has, or none without another chosen one.
    """
    found = Counter(label for record in records for label in set(record["labels"]))
    kept: list[dict[str, Any]] = []
    counts = {"unlisted": 0, "ambiguous": 0}
    for record in records:
        present = [value for value in values if value in record["labels"]]
        if len(present) == 1:
            kept.append({**{key: item for key, item in record.items() if key != "labels"}, "value": present[0]})
        else:
            counts["ambiguous" if present else "unlisted"] += 1
    lacking = [value for value in values if not any(record["value"] == value for record in kept)]
    if lacking:
        listed = ", ".join(f"'{label}' ({number} images)" for label, number in found.most_common(30))
        raise DataError(
            f"no image has only {lacking} of the classes {list(values)}; {counts['ambiguous']} images have several. "
            f"Labels found: {listed}. Correct --classes, or choose classes that exclude each other."
        )
    return kept, {name: number for name, number in counts.items() if number}
