"""Common to all original downloads: tables, files, splits, the reference batch, the datalist."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medfusion_monai.data.datalist import DATALIST_NAME, missing_files
from medfusion_monai.data.pixels import record_digests
from medfusion_monai.data.preparing.duplicates import find_duplicates, link_patients, refuse_contradictions
from medfusion_monai.data.preparing.new_datalist import (
    count_images,
    make_datalist,
    refuse_other_datalist,
    save_datalist,
)
from medfusion_monai.data.preparing.splits import DataError, split_around_test, split_by_patient
from medfusion_monai.data.reading.brightness import SHEET_NAME, TILES, ImageSurvey, spread_evenly
from medfusion_monai.data.reading.images import check_images, inspect_images, list_problems
from medfusion_monai.runtime.files import refuse_unwritable
from medfusion_monai.runtime.seeds import derive_seed
from medfusion_monai.runtime.values import check_config_paths

logger = logging.getLogger(__name__)

Record = dict[str, Any]


class Download(NamedTuple):
    """The contents of an original download.

    Args:
        folder: folder to which the image paths are relative.
        records: mappings with ``image``, ``label``, ``patient``; ``test`` is True for images of the download's own
            test part, ``comparable`` False for images excluded from the reference batch.
        class_names: names in label order.
        channels: channels that all images must have.
        source: short text on how labels and patients were found.
        reference_size: images per class in the published reference batch.
        paper: published counts by row of the table that ``medfusion prepare`` prints.
        counts: further counts.
    """

    folder: Path
    records: list[Record]
    class_names: tuple[str, ...]
    channels: int
    source: str
    reference_size: int
    paper: Mapping[str, Any]
    counts: Mapping[str, int] = {}


def write_download(
    download: Download,
    output: str | os.PathLike[str],
    fractions: Sequence[float],
    seed: int,
    overwrite: bool = False,
    allow_missing: bool = False,
    check: bool = False,
) -> dict[str, Any]:
    """Split the images of a download by patient, draw the reference batch, and write the datalist.

    Args:
        download: its contents.
        output: folder for ``datalist.json``, which points to the images.
        fractions: shares of the patients for training, validation and test.
        seed: seed of the splits and the reference batch.
        overwrite: replace a different datalist.
        allow_missing: leave out missing images instead of raising.
        check: decode every image before writing, not only those on the contact sheet, record the checksums of their
            pixels, and keep patients with equal images in one split.

    Returns:
        The datalist that was written.

    Raises:
        DataError: for missing or unreadable images, a class without images, splits that cannot be made, and a
            different existing datalist.
        ValueError: for a folder that cannot be written.
    """
    check_config_paths(output=output)
    output = Path(output)
    refuse_unwritable([output])
    records, missing = _leave_out_missing(download, allow_missing)
    _refuse_empty_classes(records, download.class_names, missing)
    images = [os.path.join(download.folder, record["image"]) for record in records]
    # Symbolic links are resolved in the upward part of the path, since "link/.." is not the link's parent.
    way = os.path.relpath(os.path.realpath(download.folder), os.path.realpath(output))
    start = "" if way == os.curdir else f"{way}/"
    records = [{**record, "image": start + record["image"]} for record in records]
    document = _datalist(download, records, missing, fractions, seed)  # problems are reported before long decoding
    if not overwrite:
        refuse_other_datalist(output / DATALIST_NAME, document)
    survey = ImageSurvey(images)
    if not check:
        _survey_sample(survey, images, download.channels)
    else:
        digests = check_images(images, download.channels, survey)
        survey.report()
        record_digests(records, [digests[path] for path in images])
        groups = find_duplicates(records)
        refuse_contradictions(groups, download.class_names)
        link_patients(records, groups)
        document = _datalist(download, records, missing, fractions, seed)
        if not overwrite:
            refuse_other_datalist(output / DATALIST_NAME, document)
    save_datalist(output / DATALIST_NAME, document)
    survey.write_sheet(output / SHEET_NAME)
    return document


def _survey_sample(survey: ImageSurvey, images: Sequence[str], channels: int) -> None:
    """Report the brightness of the images on the contact sheet, and warn of those that cannot be used."""
    sample = spread_evenly(images, TILES)
    _, problems = inspect_images(sample, channels, survey=survey)
    if problems:
        title = f"{len(problems)} of a sample of {len(sample)} images cannot be used"
        logger.warning("%s\n--check finds all of them.", list_problems(title, list(problems.values())))
    survey.report()


def _datalist(
    download: Download, records: list[Record], missing: int, fractions: Sequence[float], seed: int
) -> dict[str, Any]:
    test = [record for record in records if record.get("test")]
    rest = [record for record in records if not record.get("test")]
    own_test = any(record.get("test") for record in download.records)
    names = download.class_names
    if own_test:
        splits = split_around_test(rest, test, fractions, seed, names)
    else:
        splits = split_by_patient(rest, fractions, seed, names)
    reference = draw_reference(rest, len(download.class_names), download.reference_size, seed)
    if not reference:
        logger.warning("no reference batch is written: a class has no images to draw it from.")
    counts = {
        "all": count_images(records, download.class_names),
        "paper": download.paper,
        **download.counts,
        **({"missing": missing} if missing else {}),
    }
    return make_datalist(splits, download.class_names, download.source, seed, reference=reference, counts=counts)


def draw_reference(records: Sequence[Record], num_classes: int, size: int, seed: int) -> list[Record]:
    """Draw the reference batch for generated images, with equally many images per class, sorted by image.

    Args:
        records: mappings with ``image`` and ``label``; those with ``comparable`` False are skipped.
        num_classes: number of classes.
        size: images per class; reduced for all classes if one has fewer.
        seed: chooses the images, independently of the order of the records.
    """
    records = sorted((item for item in records if item.get("comparable", True)), key=lambda item: item["image"])
    classes = [[item for item in records if item["label"] == label] for label in range(num_classes)]
    size = min(size, *(len(items) for items in classes))
    drawn = [
        items[index]
        for label, items in enumerate(classes)
        for index in np.random.default_rng(derive_seed("reference", seed, label)).permutation(len(items))[:size]
    ]
    return sorted(drawn, key=lambda item: item["image"])


def refuse_repeats(path: Path, column: str, values: Sequence[str], lines: Sequence[int]) -> None:
    """Raise if a value is in two rows of a table.

    Raises:
        DataError: with the first such value and its lines.
    """
    first_lines: dict[str, int] = {}
    places = ((value, first_lines.setdefault(value, line), line) for value, line in zip(values, lines, strict=True))
    repeats = [place for place in places if place[1] != place[2]]
    if repeats:
        value, first, second = repeats[0]
        raise DataError(
            f"{path}: {len(repeats)} rows repeat a {column}, first '{value}' in lines {first} and {second}. "
            "Keep one row per image."
        )


def wrong_value(path: Path, line: int, column: str, value: str, allowed: str) -> DataError:
    """Return the error for an invalid cell, with its line and value."""
    return DataError(f"{path}, line {line}: {column} is {value!r}, but must be {allowed}. Correct or remove this row.")


def walk_images(root: Path, suffixes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the folder (relative to the root, with slashes; "" for the root) and name of each image below a root.

    Hidden files and folders, and ``__MACOSX`` folders of archives, are skipped. Links to folders are followed.

    Args:
        root: top folder.
        suffixes: in lower case, e.g. ``.png``; an empty one stands for all files.

    Raises:
        DataError: if a folder cannot be listed.
    """
    seen = set()
    for folder, subfolders, names in os.walk(root, onerror=_refuse_unlisted, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # links may form circles
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith((".", "__MACOSX")))
        relative = "" if folder == os.fspath(root) else os.path.relpath(folder, root).replace(os.sep, "/")
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(tuple(suffixes)):
                yield relative, name


def _refuse_unlisted(error: OSError) -> None:
    # By default os.walk skips such a folder, and its images would be left out silently.
    raise DataError(
        f"folder '{error.filename}' cannot be listed: {error.strerror or error}. Check its permissions or its drive."
    ) from error


def refuse_no_folder(root: str | os.PathLike[str]) -> Path:
    """Return the root of a download as a path.

    Raises:
        DataError: if it is not a folder.
    """
    if not os.path.isdir(root):
        raise DataError(f"root '{root}' is not a folder. Pass the folder of the download as --root.")
    return Path(root)


def _leave_out_missing(download: Download, allow_missing: bool) -> tuple[list[Record], int]:
    paths = [os.path.join(download.folder, record["image"]) for record in download.records]
    missing = missing_files(paths)
    if not missing:
        return download.records, 0
    report = list_problems(f"{len(missing)} of {len(paths)} images do not exist", missing)
    if not allow_missing:
        raise DataError(f"{report}\nRestore them, or leave them out with --allow-missing.")
    logger.warning("left out: %s", report)
    gone = set(missing)
    kept = [record for record, path in zip(download.records, paths, strict=True) if path not in gone]
    return kept, len(missing)


def _refuse_empty_classes(records: Sequence[Record], class_names: Sequence[str], missing: int) -> None:
    labels = {record["label"] for record in records}
    empty = [name for label, name in enumerate(class_names) if label not in labels]
    if empty:
        raise DataError(
            f"classes {empty} have no images: {len(records)} images found, {missing} missing. "
            "Complete the download, or correct --root."
        )
