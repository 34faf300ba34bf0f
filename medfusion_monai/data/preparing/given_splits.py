"""Splits given by a table, in place of :func:`~medfusion_monai.data.preparing.splits.split_by_patient`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from medfusion_monai.data.preparing.splits import SPLITS, DataError

SYNONYMS = {
    "train": "training",
    "training": "training",
    "val": "validation",
    "valid": "validation",
    "validate": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


def name_given_splits(values: Sequence[str], column: str) -> list[str]:
    """Return ``training``, ``validation`` or ``test`` for each value of a column, ignoring case.

    Raises:
        DataError: for values that are neither one of these nor a synonym.
    """
    unknown = Counter(value for value in values if value.lower() not in SYNONYMS)
    if unknown:
        listed = ", ".join(f"'{value}' ({number} rows)" for value, number in sorted(unknown.items()))
        raise DataError(
            f"column '{column}' has unknown splits: {listed}. Use training, validation and test (or train, val), or "
            "leave these rows out with --where."
        )
    return [SYNONYMS[value.lower()] for value in values]


def split_as_given(records: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Split records by their ``split``.

    Args:
        records: mappings with ``image``, ``label``, ``patient`` and ``split``.
        class_names: in label order.

    Returns:
        The records under ``training``, ``validation`` and ``test``, sorted by image.

    Raises:
        DataError: for a patient in two splits, and for a class without training images.
    """
    _refuse_shared_patients(records)
    splits: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
    for record in sorted(records, key=lambda record: str(record["image"])):
        splits[record["split"]].append(dict(record))
    labels = {item["label"] for item in splits["training"]}
    lacking = [name for label, name in enumerate(class_names) if label not in labels]
    if lacking:
        raise DataError(f"the given splits have no training images of classes {lacking}. Correct --split-column.")
    return splits


def _refuse_shared_patients(records: Sequence[Mapping[str, Any]]) -> None:
    homes: dict[str, set[str]] = {}
    for record in records:
        homes.setdefault(record["patient"], set()).add(record["split"])
    shared = {patient: sorted(splits) for patient, splits in sorted(homes.items()) if len(splits) > 1}
    if shared:
        listed = "; ".join(f"'{patient}' in {' and '.join(splits)}" for patient, splits in list(shared.items())[:10])
        more = f"; and {len(shared) - 10} more" if len(shared) > 10 else ""
        raise DataError(
            f"the given splits share {len(shared)} patient(s): {listed}{more}. Assign each patient to one split, or "
            "omit --split-column."
        )
