"""Reads tables that list images with their classes, patients and splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medfusion_monai.data.preparing.csv_table import describe_where, read_rows
from medfusion_monai.data.preparing.given_splits import name_given_splits
from medfusion_monai.data.preparing.label_lists import unite_rows
from medfusion_monai.data.preparing.splits import DataError, own_patients


@dataclass(frozen=True)
class ImageTable:
    """A table with a row per image, and the columns to read.

    Args:
        path: text table, see ``read_columns``.
        image_column: column of the image paths, relative to the folder of the images.
        label_column: column of the classes.
        patient_column: column of the patients; None makes each image its own patient.
        split_column: column of given splits (training, validation, test or synonyms); None leaves the split to the
            fractions and the seed.
        where: keep the rows that have one of these values in each of these columns.
        label_separator: the label column lists several labels, separated by this text; rows of one image are united.
        image_suffix: added to the values of the image column, e.g. ``.dicom``.
    """

    path: str | os.PathLike[str]
    image_column: str = "image"
    label_column: str = "label"
    patient_column: str | None = None
    split_column: str | None = None
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)
    label_separator: str | None = None
    image_suffix: str = ""

    def records(self, root: Path) -> list[dict[str, Any]]:
        """Return a record per image: ``image``, ``value`` (its class), ``patient``, and ``split`` if it is given.

        With ``label_separator``, ``labels`` (all that are listed) takes the place of ``value``.

        Args:
            root: folder of the images.

        Raises:
            DataError: for a table that cannot be read, missing columns or rows, empty cells, images outside the root
                or in several rows, and unknown splits.
        """
        path, splits = Path(self.path), self.split_column
        columns = [self.image_column, self.label_column, *filter(None, (self.patient_column, splits))]
        separator = self.label_separator
        rows = read_rows(path, columns, self.where, [] if separator is None else [self.label_column])
        records: list[dict[str, Any]] = [
            {"image": root / (row[self.image_column] + self.image_suffix), "value": row[self.label_column]}
            for row in rows
        ]
        if self.patient_column is not None:
            for record, row in zip(records, rows, strict=True):
                record["patient"] = row[self.patient_column]
        if splits is not None:
            for record, split in zip(records, name_given_splits([row[splits] for row in rows], splits), strict=True):
                record["split"] = split
        if separator is not None:
            records = unite_rows(path, records, separator)
        _refuse_strays_and_repeats(path, root, records)
        if self.patient_column is None:
            own_patients(records, root)
        return records

    def describe(self, patients: str) -> str:
        """Return the table's name, the chosen rows, how labels are listed, the patients, and the column of splits."""
        text = f"table '{Path(self.path).name}'" + (f", {describe_where(self.where)}" if self.where else "")
        if self.label_separator is not None:
            text += f", labels separated by '{self.label_separator}', images of several classes left out"
        return f"{text}, {patients}" + (f", splits by '{self.split_column}'" if self.split_column else "")


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
