"""Prepares the datalist of a folder of images, with or without a table of labels."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medfusion_monai.data.datalist import DATALIST_NAME
from medfusion_monai.data.pixels import PIXELS
from medfusion_monai.data.preparing.class_folders import records_of_subfolders, refuse_output_among_classes
from medfusion_monai.data.preparing.duplicates import find_duplicates, link_patients, refuse_contradictions
from medfusion_monai.data.preparing.given_splits import split_as_given
from medfusion_monai.data.preparing.image_table import ImageTable
from medfusion_monai.data.preparing.label_lists import choose_listed
from medfusion_monai.data.preparing.new_datalist import make_datalist, refuse_other_datalist, save_datalist
from medfusion_monai.data.preparing.patients import PatientsByDicom, PatientsByPattern
from medfusion_monai.data.preparing.splits import DEFAULT_FRACTIONS, DataError, split_by_patient
from medfusion_monai.data.reading.brightness import SHEET_NAME, ImageSurvey
from medfusion_monai.data.reading.dicom import check_modalities
from medfusion_monai.data.reading.images import inspect_images, list_problems, read_image, write_scaled
from medfusion_monai.data.reading.synthetic_marks import marked_synthetic
from medfusion_monai.data.reading.value_range import check_range
from medfusion_monai.runtime.files import make_folders, refuse_unwritable
from medfusion_monai.runtime.values import check_config_paths, check_paths

logger = logging.getLogger(__name__)

# "image": path, text or Path; "value": class name in the source, later "label"; "patient"; "split" if it is given
Record = dict[str, Any]
IMAGE_FOLDER = "images"
PATIENTS_UNKNOWN = (
    "each image counts as its own patient: images of one patient may be in training and test, which makes results look "
    "better than they are. If patients have several images, pass --patient-pattern, --patient-from-dicom or "
    "--patient-column."
)


class ImageRules(NamedTuple):
    """What images must be to be used.

    Args:
        channels: channels that all images must have: 1, 3 or None for any.
        modalities: values of Modality that DICOM files may have; None accepts all projections and photographs.
        skip_unreadable: leave out images that are missing, unreadable or break these rules, instead of raising.
        value_range: values that become black and white, instead of the range that the files state. The images are
            then copied as PNG of full range, for all readers to agree without knowing it.
        allow_synthetic: count images that say that they are synthetic, instead of raising.
    """

    channels: int | None = None
    modalities: Sequence[str] | None = None
    skip_unreadable: bool = False
    value_range: tuple[float, float] | None = None
    allow_synthetic: bool = False


ANY_IMAGE = ImageRules()


def prepare_folder(
    root: str | os.PathLike[str],
    output: str | os.PathLike[str],
    table: ImageTable | None = None,
    classes: Sequence[str] | None = None,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    seed: int = 0,
    rules: ImageRules = ANY_IMAGE,
    copy: bool = False,
    overwrite: bool = False,
    folders: Sequence[str] | None = None,
    patients: PatientsByPattern | PatientsByDicom | None = None,
) -> dict[str, Any]:
    """Write the datalist of a folder of images. Each image is decoded once, to find broken ones before training.

    Images with equal pixels are counted and stay in one split, together with all images of their patients.

    Args:
        root: folder of the images. Without ``table`` it has one sub-folder per class and each image is its own patient.
        output: folder for ``datalist.json``.
        table: lists the images with their classes.
        classes: values in label order, each ``VALUE`` or ``VALUE=NAME``; None takes all values, sorted.
        fractions: shares of the patients for training, validation and test; unused if the table gives the splits.
        seed: seed of the split; unused if the table gives the splits.
        rules: what the images must be.
        copy: copy the images to ``output/images`` instead of pointing at them.
        overwrite: replace a different datalist.
        folders: without ``table``, the sub-folders to read; None reads all.
        patients: how the patients are found; None leaves them to the table, or makes each image its own patient.

    Returns:
        The datalist that was written, beside a contact sheet of the images.

    Raises:
        DataError: for an unusable folder, table or image, images that use a small part of their range, and for splits
            that cannot be made.
    """
    check_paths(root=root)
    check_config_paths(output=output)
    root, output = Path(root), Path(output)
    if not os.path.isdir(root):
        raise DataError(f"root '{root}' is not a folder. Pass the folder of the images as --root.")
    refuse_unwritable([output])
    check_modalities(rules.modalities)
    check_range(rules.value_range)
    copy = copy or rules.value_range is not None
    if table is None:
        refuse_output_among_classes(root, output, copy)
    records = records_of_subfolders(root, output, folders) if table is None else table.records(root)
    counts: dict[str, int] = {}
    if table is not None and table.label_separator is not None:
        if not classes:
            raise DataError("a column of label lists needs the labels to choose. Pass them as --classes.")
        records, counts = choose_listed(records, [item.partition("=")[0] for item in classes])
    if patients is not None:
        patients.assign(records, root)
    elif table is None or table.patient_column is None:
        logger.warning(PATIENTS_UNKNOWN)
    plan = _Plan(root, output, table, _assign_labels(records, classes), fractions, seed, copy, rules)
    synthetic = _find_synthetic([record["image"] for record in records], rules.allow_synthetic)
    plan = plan._replace(described=_describe(table, folders, patients), counts=counts)
    path = output / DATALIST_NAME
    expected, _ = plan.datalist(records)  # problems that do not depend on pixels are reported before long decoding
    if not overwrite and not rules.skip_unreadable and not _has_duplicates(path):
        refuse_other_datalist(path, expected)
    del expected  # as large as the records
    survey = ImageSurvey([record["image"] for record in records], rules.value_range)
    kept, skipped, duplicates = _decode(records, plan.names, rules, survey)
    number = sum(os.fspath(record["image"]) in synthetic for record in kept)
    plan = plan._replace(counts={**plan.counts, **({"synthetic": number} if number else {})})
    document, copies = plan.datalist(kept, skipped, duplicates)
    if not overwrite:
        refuse_other_datalist(path, document)
    _copy_images(copies, rules, synthetic)
    if patients is not None:
        patients.save()
    save_datalist(path, document)
    survey.write_sheet(output / SHEET_NAME)
    return document


def _find_synthetic(images: Sequence[str | os.PathLike[str]], allowed: bool) -> set[str]:
    """Return the images that are marked as synthetic; raise a DataError for them unless they are allowed."""
    found = marked_synthetic(images)
    if found and not allowed:
        raise DataError(
            list_problems(f"{len(found)} of {len(images)} images are marked as synthetic", found)
            + "\nA model trained on generated images learns their faults, and an evaluation against them says little. "
            "Leave them out, or pass --allow-synthetic."
        )
    return set(found)


class _Plan(NamedTuple):
    """How records become a datalist."""

    root: Path
    output: Path
    table: ImageTable | None
    names: Sequence[str]
    fractions: Sequence[float]
    seed: int
    copy: bool
    rules: ImageRules
    described: str = ""
    counts: Mapping[str, int] = {}

    def datalist(
        self, records: list[Record], skipped: int = 0, duplicates: int = 0
    ) -> tuple[dict[str, Any], dict[Path, Path]]:
        """Return the datalist, and which images to copy where."""
        if self.table is not None and self.table.split_column:
            splits = split_as_given(records, self.names)
        else:
            splits = split_by_patient(records, self.fractions, self.seed, self.names)
        suffix = "" if self.rules.value_range is None else ".png"
        copies = _place_images(splits, self.root, self.output, self.copy, suffix)
        source = f"folder '{self.root.resolve().name}', {self.described}"
        if self.rules.value_range is not None:
            source += ", values {:g} to {:g}".format(*self.rules.value_range)
        counts = {**self.counts, **({"duplicates": duplicates} if duplicates else {})}
        return make_datalist(splits, self.names, source, self.seed, skipped, counts=counts), copies


def _decode(
    records: list[Record], names: Sequence[str], rules: ImageRules, survey: ImageSurvey
) -> tuple[list[Record], int, int]:
    """Decode all images; return the records that are kept, the number left out, and the number of duplicates."""
    images = [record["image"] for record in records]
    digests, problems = inspect_images(images, rules.channels, rules.modalities, survey)
    survey.report()
    kept, skipped = _drop_unreadable(records, problems, rules.skip_unreadable)
    _refuse_empty_classes(kept, names, skipped)
    for record in kept:
        record[PIXELS] = digests[os.fspath(record["image"])]
    groups = find_duplicates(kept)
    refuse_contradictions(groups, names)
    return kept, skipped, link_patients(kept, groups)


def _describe(
    table: ImageTable | None, folders: Sequence[str] | None, patients: PatientsByPattern | PatientsByDicom | None
) -> str:
    """Return in words where labels, patients and splits come from."""
    column = table.patient_column if table else None
    known = f"patients by '{column}'" if column else "each image its own patient"
    text = patients.describe() if patients else known
    chosen = f" of {', '.join(folders)}" if folders else ""
    return table.describe(text) if table else f"one sub-folder per class{chosen}, {text}"


def _has_duplicates(path: Path) -> bool:
    """Return whether an existing datalist has splits that account for duplicates."""
    try:
        return "duplicates" in json.loads(path.read_text(encoding="utf-8"))["counts"]
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _assign_labels(records: Sequence[Record], classes: Sequence[str] | None) -> list[str]:
    """Replace each record's value by its label and return the class names."""
    counts = Counter(record["value"] for record in records)
    pairs = [item.partition("=") for item in (sorted(counts) if classes is None else classes)]
    if classes is None:  # a value that contains "=" is not a pair
        pairs = [(value, "", "") for value in sorted(counts)]
    values, names = [value for value, _, _ in pairs], [name or value for value, _, name in pairs]
    if len(set(values)) < len(values) or len(set(names)) < len(names):
        raise DataError(f"classes are {list(classes or [])}: each value and each name must occur once.")
    outside = {value: number for value, number in sorted(counts.items()) if value not in values}
    if outside:
        listed = ", ".join(f"'{value}' ({number} images)" for value, number in list(outside.items())[:30])
        more = f", and {len(outside) - 30} more" if len(outside) > 30 else ""
        raise DataError(
            f"label values outside the classes {values}: {listed}{more}. Add them to --classes, or leave these images "
            "out with --where COLUMN=VALUE (--where folder=NAME without a table). For cells that list several labels "
            "pass --label-separator."
        )
    empty = [value for value in values if not counts[value]]
    if empty:
        raise DataError(
            f"classes {empty} have no images; values found: {dict(counts.most_common(30))}. Correct --classes."
        )
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
        raise DataError(f"{report}\nReplace these files, or leave them out with --skip-unreadable.")
    logger.warning("left out: %s", report)
    return [record for record in records if os.fspath(record["image"]) not in problems], len(problems)


def _refuse_empty_classes(records: Sequence[Record], names: Sequence[str], skipped: int) -> None:
    labels = {record["label"] for record in records}
    empty = [name for label, name in enumerate(names) if label not in labels]
    if empty:
        raise DataError(
            f"classes {empty} have no images left: {skipped} images cannot be used. "
            "Replace these files, or remove the classes from --classes."
        )


def _place_images(
    splits: Mapping[str, Sequence[Record]], root: Path, output: Path, copy: bool, suffix: str
) -> dict[Path, Path]:
    """Make the paths relative to the output folder, and return the target of each image to copy."""
    folder = os.path.realpath(output)
    copies = {}
    for items in splits.values():
        for item in items:
            image = Path(item["image"])
            if copy:
                below_root = os.path.relpath(os.path.abspath(image), os.path.abspath(root)) + suffix
                item["image"] = Path(IMAGE_FOLDER) / below_root
                copies[image] = output / item["image"]
            else:
                # The image may itself be a link whose name matters: only its folder is resolved.
                item["image"] = os.path.relpath(os.path.join(os.path.realpath(image.parent), image.name), folder)
    return copies


def _copy_images(copies: Mapping[Path, Path], rules: ImageRules, synthetic: Collection[str]) -> None:
    make_folders({target.parent for target in copies.values()})
    for image, target in copies.items():
        try:
            if rules.value_range is not None:
                pixels = read_image(image, rules.channels, rules.modalities, rules.value_range)
                write_scaled(pixels, target, os.fspath(image) in synthetic)
            elif not (target.exists() and target.samefile(image)):
                shutil.copyfile(image, target)
        except OSError as error:
            raise DataError(
                f"{target}: cannot be written: {error.strerror or error}. Choose another --output."
            ) from error
