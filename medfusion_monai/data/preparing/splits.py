"""Splits by patient: no patient is in two splits, and each split has all classes."""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SPLITS = ("training", "validation", "test")
DEFAULT_FRACTIONS = (0.8, 0.1, 0.1)


class DataError(ValueError):
    """The user's data is invalid; the message states what is wrong, where, the value found, and what to do."""


def own_patients(records: Iterable[dict[str, Any]], root: Path) -> None:
    """Make each image its own patient, named by its stem, or by its path where stems repeat."""
    stems = Counter(Path(record["image"]).stem for record in records)
    for record in records:
        stem = Path(record["image"]).stem
        relative = os.path.relpath(record["image"], root)
        record["patient"] = stem if stems[stem] == 1 else Path(relative).as_posix()


def split_by_patient(
    records: Iterable[Mapping[str, Any]],
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Split records with no patient in two splits and all classes in each split.

    A patient counts for the class of its highest label. The result depends on the set of records and the seed, not
    on the order of the records.

    Args:
        records: mappings with ``image``, ``label`` and ``patient``; ``group``, if present, replaces the patient, to
            keep several patients together.
        fractions: shares of the patients for training, validation and test; they sum to 1, zeros are allowed.
        seed: chooses the patients.
        class_names: in label order, for error texts; None states labels.

    Returns:
        The records under ``training``, ``validation`` and ``test``, sorted by image.

    Raises:
        DataError: for invalid fractions, and for a class with too few patients for the splits with a share.
    """
    fractions = _checked_fractions(fractions)
    by_patient: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        by_patient[str(record.get("group", record["patient"]))].append(dict(record))
    by_class: dict[int, list[str]] = defaultdict(list)
    for patient in sorted(by_patient):
        by_class[max(record["label"] for record in by_patient[patient])].append(patient)

    splits: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
    for label in sorted(by_class):
        patients = by_class[label]
        order = np.random.default_rng([seed, label]).permutation(len(patients))
        bounds = np.cumsum(_allocate(len(patients), fractions, _named(label, class_names)))
        for position, index in enumerate(order):
            name = SPLITS[int(np.searchsorted(bounds, position, side="right"))]
            splits[name].extend(by_patient[patients[index]])
    _refuse_lacking_classes(splits, fractions, class_names)
    return {name: sorted(items, key=lambda item: str(item["image"])) for name, items in splits.items()}


def split_around_test(
    records: Sequence[Mapping[str, Any]],
    test: Sequence[Mapping[str, Any]],
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Split records into training and validation, with the test split of the source.

    Args:
        records: mappings with ``image``, ``label`` and ``patient``, for training and validation.
        test: the same for test.
        fractions: as for :func:`split_by_patient`; only the ratio of the first two is used.
        seed: chooses the patients.
        class_names: as for :func:`split_by_patient`.

    Returns:
        The records under ``training``, ``validation`` and ``test``, sorted by image.

    Raises:
        DataError: as :func:`split_by_patient`, and for a patient in both or a class in only one.
    """
    training, validation, _ = _checked_fractions(fractions)
    if training + validation == 0:
        raise DataError(
            f"fractions are {list(fractions)}, but the source has its own test split: "
            "training or validation needs a share."
        )
    shared = sorted({str(item["patient"]) for item in records} & {str(item["patient"]) for item in test})
    if shared:
        raise DataError(
            f"{len(shared)} patient(s) are in the source's training and test parts, first {', '.join(shared[:10])}. "
            "Remove their images from one of the two."
        )
    lacking = sorted({item["label"] for item in records} ^ {item["label"] for item in test})
    if lacking:
        raise DataError(
            f"{', '.join(_named(label, class_names) for label in lacking)}: images are in only one of the source's "
            "training and test parts. Complete the download."
        )
    total = training + validation
    splits = split_by_patient(records, (training / total, validation / total, 0.0), seed, class_names)
    return {**splits, "test": sorted((dict(item) for item in test), key=lambda item: str(item["image"]))}


def _named(label: int, class_names: Sequence[str] | None) -> str:
    return f"label {label}" if class_names is None else f"class '{class_names[label]}'"


def _refuse_lacking_classes(
    splits: Mapping[str, Sequence[Mapping[str, Any]]], fractions: Sequence[float], class_names: Sequence[str] | None
) -> None:
    # A class can be missing from a split if most of its patients count for a higher label.
    labels = {item["label"] for items in splits.values() for item in items}
    for name, fraction in zip(SPLITS, fractions, strict=True):
        lacking = sorted(labels - {item["label"] for item in splits[name]})
        if fraction > 0 and lacking:
            raise DataError(
                f"the {name} split has no images of {_named(lacking[0], class_names)}: too few patients have images of "
                "it and none of a later class. Add such patients, set a fraction to 0, or choose another seed."
            )


def apportion(total: int, shares: Sequence[float], at_least: int = 0) -> list[int]:
    """Apportion an integer by the largest-remainder method.

    Args:
        total: sum of the counts.
        shares: shares with a sum of 1.
        at_least: smallest count for a share above 0.
    """
    quotas = [total * share for share in shares]
    least = [at_least if share > 0 else 0 for share in shares]
    counts = [max(low, math.floor(quota + 1e-9)) for low, quota in zip(least, quotas, strict=True)]
    while sum(counts) != total:
        step = 1 if sum(counts) < total else -1
        able = [index for index, share in enumerate(shares) if share > 0 and counts[index] + step >= least[index]]
        counts[max(able, key=lambda index: step * (quotas[index] - counts[index]))] += step
    return counts


def _checked_fractions(fractions: Sequence[float]) -> tuple[float, ...]:
    values = tuple(float(value) for value in fractions)
    if len(values) != len(SPLITS) or min(values) < 0 or not abs(sum(values) - 1) <= 1e-6:  # nan is refused too
        raise DataError(
            f"fractions must be three numbers of 0 or more that sum to 1, for {', '.join(SPLITS)}; "
            f"found {list(values)}."
        )
    return values


def _allocate(number: int, fractions: Sequence[float], named: str) -> list[int]:
    used = sum(fraction > 0 for fraction in fractions)
    if number < used:
        raise DataError(
            f"{named} has {number} patient(s), too few for {used} splits with at least one each. "
            "Add patients of this class or set a fraction to 0."
        )
    return apportion(number, fractions, at_least=1)
