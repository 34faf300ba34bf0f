"""Three hospitals made from one set of X-rays: patients divided by finding and view, and a data set for each."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medfusion_monai.data.preparing.folder import prepare_folder
from medfusion_monai.data.preparing.image_table import ImageTable
from medfusion_monai.data.preparing.splits import SPLITS, split_by_patient
from medfusion_monai.runtime.seeds import derive_seed

SITES = ("north", "south", "west")
ALL = "all"
"""Name of the data set of all sites together."""
CLASSES = ("no_finding", "effusion")
FRACTIONS = (0.7, 0.1, 0.2)
"""Shares of the patients of each site in training, validation and test."""
SHARES: Mapping[tuple[bool, str], Sequence[float]] = {
    (False, "PA"): (0.82, 0.16, 0.02),
    (False, "both"): (0.50, 0.32, 0.18),
    (False, "AP"): (0.10, 0.10, 0.80),
    (True, "PA"): (0.82, 0.16, 0.02),
    (True, "both"): (0.30, 0.42, 0.28),
    (True, "AP"): (0.10, 0.10, 0.80),
}
"""Shares of the sites of the patients with or without an effusion, by the views that they have.

North is large and sees patients who stand, few of them with an effusion; west is small and sees the bedridden, with
many; south is between them.
"""
COLUMNS = ("image", "label", "patient", "view", "split")
Row = dict[str, Any]


def read_table(xrays: Path) -> list[Row]:
    """Return the images of both classes: ``image`` (name), ``label``, ``patient`` and ``view``.

    Args:
        xrays: folder with ``images`` and ``labels.csv``.

    Raises:
        ValueError: if the table is missing, or lacks columns.
    """
    path = xrays / "labels.csv"
    if not path.is_file():
        raise ValueError(f"there is no file {path}: --xrays is a folder with images and labels.csv")
    with path.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    lacking = {"filename", "label", "effusion", "view", "patient_id"} - set(rows[0] if rows else ())
    if lacking:
        raise ValueError(f"{path} has no columns {', '.join(sorted(lacking))}")
    chosen = [row for row in rows if row["label"] == CLASSES[0] or row["effusion"] == "1"]
    return [
        {
            "image": row["filename"],
            "label": int(row["effusion"]),
            "patient": row["patient_id"],
            "view": row["view"],
        }
        for row in chosen
    ]


def divide(rows: Sequence[Row], seed: int = 0) -> dict[str, list[Row]]:
    """Return the images of each site, all of a patient at one site, each with its ``split``."""
    by_patient: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_patient[row["patient"]].append(row)
    kinds: dict[tuple[bool, str], list[str]] = defaultdict(list)
    for patient in sorted(by_patient):
        views = {row["view"] for row in by_patient[patient]}
        found = any(row["label"] for row in by_patient[patient])
        kinds[found, "both" if len(views) > 1 else views.pop()].append(patient)
    sites: dict[str, list[Row]] = {name: [] for name in SITES}
    for kind, patients in sorted(kinds.items()):
        order = np.random.default_rng(derive_seed("sites", seed, *kind)).permutation(len(patients))
        ends = np.round(np.cumsum(SHARES[kind]) * len(patients)).astype(int)
        for name, places in zip(SITES, np.split(order, ends[:-1]), strict=True):
            for place in places:
                sites[name] += by_patient[patients[place]]
    return {name: _with_splits(own, seed) for name, own in sites.items()}


def _with_splits(rows: Sequence[Row], seed: int) -> list[Row]:
    splits = split_by_patient(rows, FRACTIONS, seed, CLASSES)
    return [{**row, "split": split} for split in SPLITS for row in splits[split]]


def prepare_sites(xrays: Path, output: Path, seed: int = 0) -> dict[str, Path]:
    """Write a data set per site, and one of all sites; return their folders by name."""
    sites = divide(read_table(xrays), seed)
    sites[ALL] = [row for name in SITES for row in sites[name]]
    return {name: _prepare(xrays, output / name, rows) for name, rows in sites.items()}


def _prepare(xrays: Path, folder: Path, rows: Sequence[Row]) -> Path:
    table = folder / "images.csv"
    folder.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, COLUMNS)
        writer.writeheader()
        writer.writerows({**row, "label": CLASSES[row["label"]]} for row in rows)
    listed = ImageTable(table, patient_column="patient", split_column="split")
    prepare_folder(xrays / "images", folder, listed, classes=CLASSES)
    return folder


def views_of(folder: Path) -> dict[str, str]:
    """Return the view of each image of a data set of ``prepare_sites``, by its name."""
    with (folder / "images.csv").open(newline="", encoding="utf-8") as lines:
        return {row["image"]: row["view"] for row in csv.DictReader(lines)}


def describe(rows: Sequence[Row]) -> str:
    """Return the numbers of patients and images of a site, and its shares of effusions and of AP views."""
    patients = len({row["patient"] for row in rows})
    training = [row for row in rows if row["split"] == "training"]
    found, beds = (sum(condition) / len(rows) for condition in _conditions(rows))
    return f"{patients} patients | {len(rows)} images, {len(training)} in training | {found:.0%} | {beds:.0%}"


def _conditions(rows: Sequence[Row]) -> tuple[list[bool], list[bool]]:
    return [row["label"] == 1 for row in rows], [row["view"] == "AP" for row in rows]
