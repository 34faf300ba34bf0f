"""Reads tables that list images with their classes, patients and splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medfusion_monai.data.preparing.csv_table import read_rows
from medfusion_monai.data.preparing.given_splits import name_given_splits
from medfusion_monai.data.preparing.splits import DataError, own_patients


@dataclass(frozen=True)
class ImageTable:
    """A table with a row per image, and the columns to read.

    Args:
        path: text table in UTF-8, with comma, semicolon or tab between columns.
        image_column: column of the image paths, relative to the folder of the images.
        label_column: column of the classes.
        patient_column: column of the patients; None makes each image its own patient.
        split_column: column of given splits (training, validation, test or synonyms); None leaves the split to the
            fractions and the seed.
        where: keep the rows that have these values in these columns.
    """

    path: str | os.PathLike[str]
    image_column: str = "image"
    label_column: str = "label"
    patient_column: str | None = None
    split_column: str | None = None
    where: Mapping[str, str] = field(default_factory=dict)

    def records(self, root: Path) -> list[dict[str, Any]]:
        """Return a record per row, with ``image``, ``value`` (its class), ``patient``, and ``split`` if it is given.

        Args:
            root: folder of the images.

        Raises:
            DataError: for a table that cannot be read, missing columns or rows, empty cells, images outside the root
                or in several rows, and unknown splits.
        """
        path, splits = Path(self.path), self.split_column
        columns = [self.image_column, self.label_column, *filter(None, (self.patient_column, splits))]
        rows = read_rows(path, columns, self.where)
        records = [{"image": root / row[self.image_column], "value": row[self.label_column]} for row in rows]
        _refuse_strays_and_repeats(path, root, records)
        if self.patient_column is None:
            own_patients(records, root)
        else:
            for record, row in zip(records, rows, strict=True):
                record["patient"] = row[self.patient_column]
        if splits is not None:
            for record, split in zip(records, name_given_splits([row[splits] for row in rows], splits), strict=True):
                record["split"] = split
        return records

    def describe(self) -> str:
        """Return the table's name, the chosen rows, and the columns of patients and splits."""
        text = f"table '{Path(self.path).name}'" + "".join(
            f", {column}={value}" for column, value in self.where.items()
        )
        text += f", patients by '{self.patient_column}'" if self.patient_column else ", each image its own patient"
        return text + (f", splits by '{self.split_column}'" if self.split_column else "")


def _refuse_strays_and_repeats(path: Path, root: Path, records: Sequence[Mapping[str, Any]]) -> None:
    base = os.path.abspath(root)
    images = [os.path.abspath(record["image"]) for record in records]
    strays = [image for image in images if os.path.commonpath([base, image]) != base]
    if strays:
        raise DataError(
            f"{path}: {len(strays)} images are outside root '{root}', first {strays[:3]}. Choose a --root above them."
        )
    repeats = [image for image, number in Counter(images).items() if number > 1]
    if repeats:
        raise DataError(
            f"{path}: {len(repeats)} images have more than one row, first {repeats[:3]}. "
            "Keep one row per image, or choose rows with --where."
        )
