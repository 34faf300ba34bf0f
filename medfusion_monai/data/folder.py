"""Prepares a folder of images, with or without a table of labels, as a datalist."""

from __future__ import annotations

import csv as csv_module
import difflib
import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medfusion_monai.data.datalist import (
    DATALIST_NAME,
    make_datalist,
    make_folder,
    refuse_other_datalist,
    refuse_unwritable,
    write_datalist,
)
from medfusion_monai.data.images import find_unreadable, list_problems
from medfusion_monai.data.splits import DEFAULT_FRACTIONS, DataError, split_by_patient

logger = logging.getLogger(__name__)

Record = dict[str, Any]  # "image": path; "value": the class as the source calls it, later "label"; "patient"
SYSTEM_FILES = ("thumbs.db", "desktop.ini")
IMAGE_FOLDER = "images"
PATIENTS_UNKNOWN = (
    "each image counts as a patient of its own: images of one patient may be in training and test, which makes "
    "results look better than they are. Where patients have several images, give --csv with --patient-column."
)


def prepare_folder(
    root: str | os.PathLike[str],
    output: str | os.PathLike[str],
    csv: str | os.PathLike[str] | None = None,
    image_column: str = "image",
    label_column: str = "label",
    patient_column: str | None = None,
    where: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    seed: int = 0,
    channels: int | None = None,
    skip_unreadable: bool = False,
    copy: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the datalist of a folder of images. Every image is decoded once, so that training meets no broken one.

    Args:
        root: folder of the images. Without ``csv`` it has one sub-folder per class and each image is its own patient.
        output: folder for ``datalist.json``.
        csv: table with a row per image; comma, semicolon or tab between columns.
        image_column: column of the image paths, relative to ``root``.
        label_column: column of the classes.
        patient_column: column of the patients; None makes each image its own patient.
        where: keep the rows that have these values in these columns.
        classes: values in label order, each ``VALUE`` or ``VALUE=NAME``; None takes all values, sorted.
        fractions: shares of the patients for training, validation and test.
        seed: seed of the split.
        channels: channels that all images must have: 1, 3 or None for any.
        skip_unreadable: leave out missing and unreadable images instead of raising.
        copy: copy the images to ``output/images`` instead of pointing at them.
        overwrite: replace a datalist that differs.

    Returns:
        What was written.

    Raises:
        DataError: anything about the folder, the table, the images or the split that is not as it has to be.
    """
    root, output = Path(root), Path(output)
    if not root.is_dir():
        raise DataError(f"root '{root}' is not a folder. Give the folder of the images.")
    refuse_unwritable(output)
    if csv is None:
        if where or patient_column:
            raise DataError("where and patient_column need a table. Give it with --csv.")
        records = _records_of_subfolders(root, output)
    else:
        records = _records_of_table(root, Path(csv), image_column, label_column, patient_column, where or {})
    if patient_column is None:
        logger.warning(PATIENTS_UNKNOWN)
    names = _assign_labels(records, classes)
    source = _describe(root, csv, patient_column, where or {})

    def plan(kept: list[Record], skipped: int) -> tuple[dict[str, list[Record]], dict[Path, Path]]:
        splits = split_by_patient(kept, fractions, seed)
        copies = _place_images(splits, root, output, copy)
        if not overwrite:
            refuse_other_datalist(output / DATALIST_NAME, make_datalist(splits, names, source, seed, skipped))
        return splits, copies

    if not skip_unreadable:
        plan(records, 0)  # what does not depend on the pixels is said before minutes of decoding
    records, skipped = _drop_unreadable(records, channels, skip_unreadable)
    _refuse_empty_classes(records, names, skipped)
    splits, copies = plan(records, skipped)
    _copy_images(copies)
    return write_datalist(output / DATALIST_NAME, splits, names, source, seed, skipped)


def _records_of_subfolders(root: Path, output: Path) -> list[Record]:
    folders = sorted(
        folder
        for folder in root.iterdir()
        if folder.is_dir() and not folder.name.startswith(".") and folder.resolve() != output.resolve()
    )
    records = [
        {"image": path, "value": folder.name}
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if _counts(path)
    ]
    if not records:
        raise DataError(
            f"root '{root}' holds no images in sub-folders (found sub-folders {[folder.name for folder in folders]}). "
            "Make one sub-folder per class, or name a table with --csv."
        )
    _own_patients(records, root)
    return records


def _counts(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.name.lower() not in SYSTEM_FILES


def _own_patients(records: list[Record], root: Path) -> None:
    """Make each image its own patient, named by its stem, or by its path where stems repeat."""
    stems = Counter(record["image"].stem for record in records)
    for record in records:
        stem = record["image"].stem
        relative = os.path.relpath(record["image"], root)
        record["patient"] = stem if stems[stem] == 1 else Path(relative).as_posix()


def _records_of_table(
    root: Path, path: Path, image_column: str, label_column: str, patient_column: str | None, where: Mapping[str, str]
) -> list[Record]:
    header, rows = _read_table(path)
    wanted = [image_column, label_column, *([patient_column] if patient_column else []), *where]
    _refuse_missing_columns(path, header, wanted)
    kept = [row for row in rows if all((row[column] or "").strip() == value for column, value in where.items())]
    if not kept:
        chosen = ", ".join(f"{column}={value}" for column, value in where.items())
        raise DataError(f"{path}: {len(rows)} rows, none with {chosen or 'content'}. Correct --where or the table.")
    _refuse_empty_cells(path, kept, wanted)
    records = [{"image": root / row[image_column].strip(), "value": row[label_column].strip()} for row in kept]
    _refuse_strays_and_repeats(path, root, records)
    if patient_column is None:
        _own_patients(records, root)
    else:
        for record, row in zip(records, kept, strict=True):
            record["patient"] = row[patient_column].strip()
    return records


def _read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            # Spreadsheets of some countries write semicolons under the name of comma-separated values.
            reader = csv_module.DictReader(file, delimiter=max(",;\t", key=first.count))
            rows = list(reader)
            return list(reader.fieldnames or []), rows
    except OSError as error:
        raise DataError(f"table '{path}' cannot be opened: {error.strerror or error}. Correct --csv.") from error
    except (UnicodeDecodeError, csv_module.Error) as error:
        raise DataError(f"table '{path}' is no UTF-8 text table: {error}. Save it as CSV in UTF-8.") from error


def _refuse_missing_columns(path: Path, header: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [column for column in wanted if column not in header]
    if missing:
        near = {column: difflib.get_close_matches(column, header, n=3, cutoff=0.5) for column in missing}
        hints = "; ".join(f"'{column}' is near {names}" for column, names in near.items() if names)
        raise DataError(
            f"{path}: columns {missing} are missing; present: {list(header)}. "
            f"{hints + '. ' if hints else ''}Correct --image-column, --label-column, --patient-column or --where."
        )


def _refuse_empty_cells(path: Path, rows: Sequence[Mapping[str, str | None]], columns: Sequence[str]) -> None:
    for column in columns:
        empty = sum(not (row[column] or "").strip() for row in rows)
        if empty:
            raise DataError(f"{path}: column '{column}' is empty in {empty} of {len(rows)} rows. Fill or remove them.")


def _refuse_strays_and_repeats(path: Path, root: Path, records: Sequence[Record]) -> None:
    base = os.path.abspath(root)
    images = [os.path.abspath(record["image"]) for record in records]
    strays = [image for image in images if os.path.commonpath([base, image]) != base]
    if strays:
        raise DataError(
            f"{path}: {len(strays)} images lie outside root '{root}', first {strays[:3]}. Choose a wider --root."
        )
    repeats = [image for image, number in Counter(images).items() if number > 1]
    if repeats:
        raise DataError(
            f"{path}: {len(repeats)} images have more than one row, first {repeats[:3]}. "
            "Keep one row per image, or choose rows with --where."
        )


def _assign_labels(records: Sequence[Record], classes: Sequence[str] | None) -> list[str]:
    """Replace each record's value by its label and return the class names."""
    counts = Counter(record["value"] for record in records)
    pairs = [item.partition("=") for item in (sorted(counts) if classes is None else classes)]
    if classes is None:  # a value that itself has "=" is no pair
        pairs = [(value, "", "") for value in sorted(counts)]
    values, names = [value for value, _, _ in pairs], [name or value for value, _, name in pairs]
    if len(set(values)) < len(values) or len(set(names)) < len(names):
        raise DataError(f"classes are {list(classes or [])}: each value and each name may be given once.")
    outside = {value: number for value, number in sorted(counts.items()) if value not in values}
    if outside:
        listed = ", ".join(f"'{value}' ({number} images)" for value, number in outside.items())
        raise DataError(
            f"label values outside the classes {values}: {listed}. Name them in --classes, or leave these images out "
            "(--where with a table)."
        )
    empty = [value for value in values if not counts[value]]
    if empty:
        raise DataError(f"classes {empty} have no images; values found: {dict(counts)}. Correct --classes.")
    for record in records:
        record["label"] = values.index(record.pop("value"))
    return names


def _drop_unreadable(records: list[Record], channels: int | None, skip_unreadable: bool) -> tuple[list[Record], int]:
    problems = find_unreadable([record["image"] for record in records], channels)
    if not problems:
        return records, 0
    report = list_problems(f"{len(problems)} of {len(records)} images cannot be used", list(problems.values()))
    if not skip_unreadable:
        raise DataError(f"{report}\nReplace them, or leave them out with --skip-unreadable.")
    logger.warning("left out: %s", report)
    return [record for record in records if os.fspath(record["image"]) not in problems], len(problems)


def _refuse_empty_classes(records: Sequence[Record], names: Sequence[str], skipped: int) -> None:
    labels = {record["label"] for record in records}
    empty = [name for label, name in enumerate(names) if label not in labels]
    if empty:
        raise DataError(
            f"classes {empty} have no images left: {skipped} images cannot be used. "
            "Replace these files, or leave the classes out of --classes."
        )


def _place_images(splits: Mapping[str, Sequence[Record]], root: Path, output: Path, copy: bool) -> dict[Path, Path]:
    """Make the paths relative to the output folder; return what has to be copied where."""
    folder = os.path.realpath(output)
    copies = {}
    for items in splits.values():
        for item in items:
            image = Path(item["image"])
            if copy:
                item["image"] = Path(IMAGE_FOLDER) / os.path.relpath(os.path.abspath(image), os.path.abspath(root))
                copies[image] = output / item["image"]
            else:
                # An image may itself be a link with a telling name: only its folder is resolved.
                item["image"] = os.path.relpath(os.path.join(os.path.realpath(image.parent), image.name), folder)
    return copies


def _copy_images(copies: Mapping[Path, Path]) -> None:
    for image, target in copies.items():
        make_folder(target.parent)
        try:
            if not (target.exists() and target.samefile(image)):
                shutil.copyfile(image, target)
        except OSError as error:
            raise DataError(
                f"{target}: cannot be written: {error.strerror or error}. Choose another --output."
            ) from error


def _describe(root: Path, csv: Any, patient_column: str | None, where: Mapping[str, str]) -> str:
    text = f"folder '{root.resolve().name}', "
    text += "one sub-folder per class" if csv is None else f"table '{Path(csv).name}'"
    text += "".join(f", {column}={value}" for column, value in where.items())
    return text + (f", patients by '{patient_column}'" if patient_column else ", each image its own patient")
