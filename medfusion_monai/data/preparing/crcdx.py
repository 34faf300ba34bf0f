"""Prepares CRC-DX, tiles of colorectal cancer, microsatellite instable or stable, from the original download."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medfusion_monai.data.preparing.download import Download, Record, refuse_no_folder, walk_images, write_download
from medfusion_monai.data.preparing.splits import DEFAULT_FRACTIONS, DataError
from medfusion_monai.data.reading.images import list_problems

logger = logging.getLogger(__name__)

CLASS_NAMES = ("msi", "mss")
REFERENCE_SIZE = 9979
TRAIN_IMAGES, TEST_IMAGES = (9979, 9979), (5223, 27138)
LABELS = {"msimut": 0, "msih": 0, "mss": 1, "nonmsih": 1}
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
BARCODE = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Z0-9])")
PART = re.compile(r"(?:.*[_-])?(train|test)", re.IGNORECASE)


def prepare_crcdx(
    root: str | os.PathLike[str],
    output: str | os.PathLike[str],
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    seed: int = 0,
    overwrite: bool = False,
    allow_missing: bool = False,
    check: bool = False,
) -> dict[str, Any]:
    """Write the datalist of CRC-DX. Folders MSIMUT and MSIH are class 0, MSS and nonMSIH class 1.

    Patients are the TCGA barcodes in the file names. If the class folders lie in the download's own training and test
    folders (``TRAIN``, ``CRC_DX_TRAIN``, ...), its test part is the test split, and the patients of its training part
    are split into training and validation by the ratio of the first two fractions.

    The reference batch is balanced and drawn from all images outside the download's own test part. With the complete
    training part these are all 19,958 images, as in the paper.

    Args:
        root: folder with the class folders at any depth.
        output: folder for ``datalist.json``, which points to the images.
        fractions: shares of the patients for training, validation and test.
        seed: seed of the splits and the reference batch.
        overwrite: replace a different datalist.
        allow_missing: leave out broken links instead of raising.
        check: decode every image before writing.

    Returns:
        The datalist that was written.

    Raises:
        DataError: for missing class folders, file names without a barcode, ambiguous parts, a patient in both parts,
            and as ``write_download``.
    """
    records = _find_tiles(refuse_no_folder(root))
    own_test = _mark_test(records)
    _warn_of_contradictions(records)
    source = "CRC-DX, classes by folder, patients by TCGA barcode"
    download = Download(
        folder=Path(root),
        records=records,
        class_names=CLASS_NAMES,
        channels=3,
        source=source + (", test as in the download" if own_test else ""),
        reference_size=REFERENCE_SIZE,
        paper=_paper(own_test),
    )
    return write_download(download, output, fractions, seed, overwrite, allow_missing, check)


def _find_tiles(root: Path) -> list[Record]:
    records, strays, nameless = [], [], []
    for folder, name in walk_images(root, SUFFIXES):
        place = f"{folder}/{name}".lstrip("/")
        labels = [LABELS[part.lower()] for part in folder.split("/") if part.lower() in LABELS]
        barcode = BARCODE.search(name)
        if not labels:
            strays.append(place)
        elif barcode is None:
            nameless.append(place)
        else:
            parts = [found[1].lower() for part in folder.split("/") if (found := PART.fullmatch(part))]
            records.append(
                {"image": place, "label": labels[-1], "patient": barcode[0], "part": parts[-1] if parts else ""}
            )
    if nameless:
        raise DataError(
            list_problems(f"{len(nameless)} images below '{root}' have no TCGA barcode in their names", nameless)
            + "\nIt identifies the patient: restore the names of the download (...TCGA-xx-xxxx-...)."
        )
    if not records:
        raise DataError(
            f"root '{root}' contains no images in folders MSIMUT, MSIH, MSS or nonMSIH ({len(strays)} images elsewhere)"
            ". Pass the folder of the original CRC-DX download as --root."
        )
    if strays:
        logger.warning("%d images outside the class folders are not used, first '%s'.", len(strays), strays[0])
    return records


def _mark_test(records: list[Record]) -> bool:
    """Mark the images of the download's own test part, and return whether it has one."""
    parts = {record["part"] for record in records}
    if "test" in parts and parts != {"train", "test"}:
        others = "no training folder" if parts == {"test"} else "class folders outside its training and test folders"
        raise DataError(
            f"the download has a test folder and {others}. "
            "Pass a --root with both its training and its test folder, or one of the two."
        )
    for record in records:
        record["test"] = record.pop("part") == "test"
    return "test" in parts


def _warn_of_contradictions(records: Sequence[Record]) -> None:
    labels: dict[str, set[int]] = {}
    for record in records:
        labels.setdefault(record["patient"], set()).add(record["label"])
    both = sorted(patient for patient, found in labels.items() if len(found) > 1)
    if both:
        logger.warning("%d patients have images of both classes, first %s.", len(both), ", ".join(both[:3]))


def _paper(own_test: bool) -> Mapping[str, Any]:
    def row(images: Sequence[int]) -> dict[str, Any]:
        return {"images": dict(zip(CLASS_NAMES, images, strict=True)), "patients": None}

    reference = {"reference": row((REFERENCE_SIZE, REFERENCE_SIZE))}
    if not own_test:
        return {"all": row(TRAIN_IMAGES), **reference}
    both = [train + test for train, test in zip(TRAIN_IMAGES, TEST_IMAGES, strict=True)]
    return {"test": row(TEST_IMAGES), "all": row(both), **reference}
