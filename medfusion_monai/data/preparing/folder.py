"""Prepares a folder of images, with or without a table of labels, as a datalist."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medfusion_monai.data.datalist import DATALIST_NAME, make_datalist, refuse_other_datalist, save_datalist
from medfusion_monai.data.preparing.csv_table import read_rows
from medfusion_monai.data.preparing.download import walk_images
from medfusion_monai.data.preparing.duplicates import find_duplicates, link_patients, refuse_contradictions
from medfusion_monai.data.preparing.given_splits import name_given_splits, split_as_given
from medfusion_monai.data.preparing.splits import DEFAULT_FRACTIONS, DataError, split_by_patient
from medfusion_monai.data.reading.dicom import check_modalities
from medfusion_monai.data.reading.images import inspect_images, list_problems
from medfusion_monai.runtime.files import make_folders, refuse_unwritable

logger = logging.getLogger(__name__)

# "image": path; "value": the class as the source calls it, later "label"; "patient"; and "split" where it is given
Record = dict[str, Any]
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
    split_column: str | None = None,
    where: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    seed: int = 0,
    channels: int | None = None,
    modalities: Sequence[str] | None = None,
    skip_unreadable: bool = False,
    copy: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the datalist of a folder of images. Every image is decoded once, so that training meets no broken one.

    Images with equal pixels are counted and stay in one split, together with all images of their patients.

    Args:
        root: folder of the images. Without ``csv`` it has one sub-folder per class and each image is its own patient.
        output: folder for ``datalist.json``.
        csv: table with a row per image; comma, semicolon or tab between columns.
        image_column: column of the image paths, relative to ``root``.
        label_column: column of the classes.
        patient_column: column of the patients; None makes each image its own patient.
        split_column: column of splits that are given (training, validation, test or synonyms) in place of
            ``fractions`` and ``seed``.
        where: keep the rows that have these values in these columns.
        classes: values in label order, each ``VALUE`` or ``VALUE=NAME``; None takes all values, sorted.
        fractions: shares of the patients for training, validation and test.
        seed: seed of the split.
        channels: channels that all images must have: 1, 3 or None for any.
        modalities: values of Modality that DICOM files may have; None takes all projections and photographs.
        skip_unreadable: leave out missing and unreadable images instead of raising.
        copy: copy the images to ``output/images`` instead of pointing at them.
        overwrite: replace a datalist that differs.

    Returns:
        What was written.

    Raises:
        DataError: anything about the folder, the table, the images or the split that is not as it has to be.
    """
    root, output = Path(root), Path(output)
    if not os.path.isdir(root):
        raise DataError(f"root '{root}' is not a folder. Give the folder of the images.")
    refuse_unwritable([output])
    check_modalities(modalities)
    where = where or {}
    if csv is not None:
        records = _records_of_table(root, Path(csv), image_column, label_column, patient_column, split_column, where)
    elif where or patient_column or split_column:
        raise DataError("where, patient_column and split_column need a table. Give it with --csv.")
    else:
        _refuse_output_among_classes(root, output, copy)
        records = _records_of_subfolders(root, output)
    if patient_column is None:
        logger.warning(PATIENTS_UNKNOWN)
    names = _assign_labels(records, classes)
    source = _describe(root, csv, patient_column, split_column, where)

    def plan(kept: list[Record], skipped: int = 0, duplicates: int = 0) -> tuple[dict[str, Any], dict[Path, Path]]:
        splits = split_as_given(kept, names) if split_column else split_by_patient(kept, fractions, seed)
        copies = _place_images(splits, root, output, copy)
        counts = {"duplicates": duplicates} if duplicates else {}
        return make_datalist(splits, names, source, seed, skipped, counts=counts), copies

    path = output / DATALIST_NAME
    document, _ = plan(records)  # what does not depend on the pixels is said before minutes of decoding
    if not overwrite and not skip_unreadable and not _has_duplicates(path):
        refuse_other_datalist(path, document)
    digests, problems = inspect_images([record["image"] for record in records], channels, modalities=modalities)
    records, skipped = _drop_unreadable(records, problems, skip_unreadable)
    _refuse_empty_classes(records, names, skipped)
    groups = find_duplicates(records, digests)
    refuse_contradictions(groups, names)
    document, copies = plan(records, skipped, duplicates=link_patients(records, groups))
    if not overwrite:
        refuse_other_datalist(path, document)
    _copy_images(copies)
    save_datalist(path, document)
    return document


def _has_duplicates(path: Path) -> bool:
    """Whether there is a datalist whose splits were made with a view to duplicates."""
    try:
        return "duplicates" in json.loads(path.read_text(encoding="utf-8"))["counts"]
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _refuse_output_among_classes(root: Path, output: Path, copy: bool) -> None:
    """Raise where the output would be read as images of a class, or hide a class; an earlier output may be there."""
    parts = Path(os.path.relpath(os.path.realpath(output), os.path.realpath(root))).parts
    if parts[:1] == (os.pardir,):
        return
    is_class = (
        len(parts) == 1 and os.path.isdir(output) and os.listdir(output) and not (output / DATALIST_NAME).exists()
    )
    if len(parts) > 1 or is_class or (copy and not parts):
        raise DataError(f"output '{output}' is among the classes of root '{root}'. Choose an --output outside of it.")


def _records_of_subfolders(root: Path, output: Path) -> list[Record]:
    own = os.path.realpath(output)
    try:
        entries = sorted(path for path in root.iterdir() if is_content(path.name) and os.path.realpath(path) != own)
    except OSError as error:
        raise DataError(f"root '{root}' cannot be listed: {error.strerror or error}. Check its permissions.") from error
    folders = [path for path in entries if os.path.isdir(path)]
    records: list[Record] = [
        {"image": folder / inner / name, "value": folder.name}
        for folder in folders
        for inner, name in walk_images(folder, ("",))
        if is_content(name)
    ]
    if not records:
        raise DataError(
            f"root '{root}' holds no images in sub-folders (found sub-folders {[folder.name for folder in folders]}). "
            "Make one sub-folder per class, or name a table with --csv."
        )
    used = {DATALIST_NAME, *(record["value"] for record in records)}
    unused = [path.name for path in entries if path.name not in used]
    if unused:
        logger.warning(
            "%s", list_problems(f"{len(unused)} entries of '{root}' are not used: no folders of images", unused)
        )
    _own_patients(records, root)
    return records


def is_content(name: str) -> bool:
    """Whether a file or folder was put there by a user: not hidden, and none of what systems leave behind."""
    return not name.startswith((".", "__MACOSX")) and name.lower() not in SYSTEM_FILES


def _own_patients(records: list[Record], root: Path) -> None:
    """Make each image its own patient, named by its stem, or by its path where stems repeat."""
    stems = Counter(record["image"].stem for record in records)
    for record in records:
        stem = record["image"].stem
        relative = os.path.relpath(record["image"], root)
        record["patient"] = stem if stems[stem] == 1 else Path(relative).as_posix()


def _records_of_table(
    root: Path,
    path: Path,
    image_column: str,
    label_column: str,
    patient_column: str | None,
    split_column: str | None,
    where: Mapping[str, str],
) -> list[Record]:
    columns = [image_column, label_column, *filter(None, (patient_column, split_column))]
    rows = read_rows(path, columns, where)
    records: list[Record] = [{"image": root / row[image_column], "value": row[label_column]} for row in rows]
    _refuse_strays_and_repeats(path, root, records)
    if patient_column is None:
        _own_patients(records, root)
    else:
        for record, row in zip(records, rows, strict=True):
            record["patient"] = row[patient_column]
    if split_column is not None:
        splits = name_given_splits([row[split_column] for row in rows], split_column)
        for record, split in zip(records, splits, strict=True):
            record["split"] = split
    return records


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


def _drop_unreadable(
    records: list[Record], problems: Mapping[str, str], skip_unreadable: bool
) -> tuple[list[Record], int]:
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
    make_folders({target.parent for target in copies.values()})
    for image, target in copies.items():
        try:
            if not (target.exists() and target.samefile(image)):
                shutil.copyfile(image, target)
        except OSError as error:
            raise DataError(
                f"{target}: cannot be written: {error.strerror or error}. Choose another --output."
            ) from error


def _describe(
    root: Path, csv: Any, patient_column: str | None, split_column: str | None, where: Mapping[str, str]
) -> str:
    text = f"folder '{root.resolve().name}', "
    text += "one sub-folder per class" if csv is None else f"table '{Path(csv).name}'"
    text += "".join(f", {column}={value}" for column, value in where.items())
    text += f", patients by '{patient_column}'" if patient_column else ", each image its own patient"
    return text + (f", splits by '{split_column}'" if split_column else "")
