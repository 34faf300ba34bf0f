"""The verb ``medfusion prepare``, which writes the datalist of a source of images."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfusion_monai.cli.arguments import bundle_path, column_value, input_path, positive, seed

if TYPE_CHECKING:
    from medfusion_monai.data.preparing.image_table import ImageTable
    from medfusion_monai.data.preparing.patients import PatientsByDicom, PatientsByPattern

DOWNLOADS = {
    "chexpert": "CheXpert: frontal chest X-rays with or without cardiomegaly; valid.csv is not used",
    "airogs": "AIROGS: eye fundus photographs with or without referable glaucoma",
    "crcdx": "CRC-DX: tiles of colorectal cancer, microsatellite instable or stable",
}
"""Public data sets by name, each read by ``prepare_NAME`` of ``data/preparing/NAME.py``."""


TABLE_OPTIONS = (
    "image_column",
    "label_column",
    "patient_column",
    "split_column",
    "label_separator",
    "image_suffix",
)
"""Fields of ``ImageTable`` with an option of the same name; all but the first two need a table."""
LEFT_OUT = {
    "lateral": "lateral",
    "missing": "missing",
    "skipped": "unreadable",
    "unlisted": "without any of the classes",
    "ambiguous": "of several classes",
}
"""Counts of a datalist, and what they count."""


def add_prepare(subparsers: Any) -> None:
    """Add ``medfusion prepare``, with a sub-command per source."""
    parser = subparsers.add_parser("prepare", help="write the datalist of a source of images")
    sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    _add_prepare_folder(sources)
    _add_prepare_phantoms(sources)
    _add_prepare_shared(sources)
    for name, text in DOWNLOADS.items():
        _add_prepare_download(sources, name, text)


def _add_prepare_folder(sources: Any) -> None:
    parser = sources.add_parser("folder", help="images in one sub-folder per class, or listed in a table")
    parser.add_argument("--root", type=input_path, required=True, help="folder of the images")
    parser.add_argument(
        "--csv", type=input_path, help="table with a row per image; without it, --root must have a sub-folder per class"
    )
    parser.add_argument("--image-column", default="image", help="column of the image paths relative to --root (image)")
    parser.add_argument("--label-column", default="label", help="column of the classes (label)")
    _add_patients(parser)
    parser.add_argument(
        "--split-column", help="column of given splits (training, validation, test), replaces --fractions and --seed"
    )
    parser.add_argument(
        "--where",
        action="append",
        type=column_value,
        default=[],
        metavar="COLUMN=VALUE",
        help="keep only rows with this value; several values of one column: any of them; several columns: all of them. "
        "Without --csv, folder=NAME chooses sub-folders",
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="VALUE[=NAME]",
        help="label values in order, with names (all values, sorted)",
    )
    parser.add_argument(
        "--label-separator",
        metavar="TEXT",
        help="the label column lists several labels, e.g. '|' for Effusion|Mass; images with exactly one of --classes "
        "are kept, whatever else they have; those with none or several are left out and counted",
    )
    parser.add_argument(
        "--image-suffix", default="", metavar="SUFFIX", help="added to the values of --image-column, e.g. .dicom"
    )
    parser.add_argument("--channels", type=int, choices=(1, 3), help="channels that all images must have")
    parser.add_argument(
        "--modalities",
        nargs="+",
        metavar="MODALITY",
        help="accepted values of DICOM's Modality, e.g. CR DX (projections and photographs)",
    )
    parser.add_argument(
        "--range",
        dest="value_range",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="values that are black and white, e.g. 0 4095; writes the images as PNG of full range to OUTPUT/images",
    )
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out missing and unreadable images")
    parser.add_argument(
        "--allow-synthetic",
        action="store_true",
        help="use images that are marked as synthetic, and count them (they are refused)",
    )
    parser.add_argument("--copy", action="store_true", help="copy the images to OUTPUT/images")
    parser.add_argument("--check", action="store_true", help="no effect: every image of this source is always decoded")
    _add_common(parser)
    parser.set_defaults(handler=_prepare_folder)


def _add_patients(parser: argparse.ArgumentParser) -> None:
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--patient-column", help="column of the patients; without it, each image is its own patient")
    ways.add_argument(
        "--patient-pattern",
        metavar="REGEX",
        help="regular expression with one group, the patient, in the path below --root, e.g. '([0-9]+)_[0-9]+'",
    )
    ways.add_argument(
        "--patient-from-dicom",
        action="store_true",
        help="patients by DICOM's PatientID, hashed with a random salt that is kept in OUTPUT/patient_salt.txt",
    )


def _add_prepare_phantoms(sources: Any) -> None:
    parser = sources.add_parser("phantoms", help="drawn images whose class can be measured")
    parser.add_argument("--modality", default="cxr", help="cxr, fundus or histo (cxr)")
    parser.add_argument("--num-images", type=positive, default=2000, help="total number of images (2000)")
    parser.add_argument("--size", type=positive, default=64, help="height and width in pixels (64)")
    _add_common(parser)
    parser.set_defaults(handler=_prepare_phantoms)


def _add_prepare_shared(sources: Any) -> None:
    parser = sources.add_parser("shared", help="samples of several sites, from the packages of medfusion share")
    parser.add_argument("packages", nargs="+", type=input_path, metavar="ZIP", help="one package per site")
    parser.add_argument(
        "--test", action="store_true", help="all images as test, e.g. of a classifier; the same as --fractions 0 0 1"
    )
    parser.add_argument(
        "--most-copies",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="share of the images that the audit of a site may have found to be copies, as it does by chance (0.01)",
    )
    _add_common(parser)
    parser.set_defaults(handler=_prepare_shared, fractions=(1.0, 0.0, 0.0))


def _add_prepare_download(sources: Any, name: str, text: str) -> None:
    parser = sources.add_parser(name, help=text)
    parser.add_argument("--root", type=input_path, required=True, help="folder of the original download")
    parser.add_argument("--allow-missing", action="store_true", help="leave out missing images")
    parser.add_argument("--check", action="store_true", help="decode every image before writing the datalist")
    _add_common(parser)
    parser.set_defaults(handler=_prepare_download)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=bundle_path, required=True, help="folder for datalist.json")
    parser.add_argument(
        "--fractions",
        nargs=3,
        type=float,
        default=(0.8, 0.1, 0.1),
        metavar=("TRAINING", "VALIDATION", "TEST"),
        help="shares of the patients (0.8 0.1 0.1; of shared: 1 0 0)",
    )
    parser.add_argument("--seed", type=seed, default=0, help="seed of all random choices (0)")
    parser.add_argument("--overwrite", action="store_true", help="replace a different datalist")


def _prepare_folder(arguments: argparse.Namespace) -> int:
    from medfusion_monai.data.preparing.folder import ImageRules, prepare_folder

    options = _options(arguments)
    del options["check"]
    where: dict[str, list[str]] = {}
    for column, value in options.pop("where"):
        where.setdefault(column, []).append(value)
    patients = _patient_rule(options)
    table = _image_table(options, where)
    folders = None if table is not None else where.get("folder")
    rules = ImageRules(*(options.pop(name) for name in ImageRules._fields))
    with _print_brightness():
        document = prepare_folder(**options, table=table, rules=rules, folders=folders, patients=patients)
    _print_counts(document, arguments.output)
    return 0


def _patient_rule(options: dict[str, Any]) -> PatientsByPattern | PatientsByDicom | None:
    """Remove the options on patients that need no table, and return what they ask for."""
    from medfusion_monai.data.preparing.patients import PatientsByDicom, PatientsByPattern

    pattern, from_dicom = options.pop("patient_pattern"), options.pop("patient_from_dicom")
    if pattern is not None:
        return PatientsByPattern(pattern)
    return PatientsByDicom(options["output"]) if from_dicom else None


def _image_table(options: dict[str, Any], where: dict[str, list[str]]) -> ImageTable | None:
    """Remove the options of a table from the others, and return the table, or None without --csv."""
    from medfusion_monai.data.preparing.image_table import ImageTable

    path = options.pop("csv")
    columns = {name: options.pop(name) for name in TABLE_OPTIONS}
    if path is not None:
        return ImageTable(path, **columns, where=where)
    needing = [f"--{name.replace('_', '-')}" for name in TABLE_OPTIONS[2:] if columns[name]]
    needing += [f"--where {column}=" for column in where if column != "folder"]
    if needing:
        raise ValueError(f"{', '.join(needing)} need a table. Pass it with --csv.")
    return None


def _prepare_phantoms(arguments: argparse.Namespace) -> int:
    from medfusion_monai.demo.phantoms.families import prepare_phantoms

    _print_counts(prepare_phantoms(**_options(arguments)), arguments.output)
    return 0


def _prepare_shared(arguments: argparse.Namespace) -> int:
    from medfusion_monai.sites.combine import TEST, prepare_shared

    options = _options(arguments)
    if options.pop("test"):
        options["fractions"] = TEST
    document = prepare_shared(**options)
    for number, site in enumerate(document["counts"]["sites"], start=1):
        print(f"site{number}: {site['images']} images, {100 * site['copy_rate']:.2f}% copies by its audit")
    _print_counts(document, arguments.output)
    return 0


def _prepare_download(arguments: argparse.Namespace) -> int:
    source = importlib.import_module(f"medfusion_monai.data.preparing.{arguments.source}")
    prepare = getattr(source, f"prepare_{arguments.source}")
    with _print_brightness():
        document = prepare(**_options(arguments))
    _print_counts(document, arguments.output)
    return 0


@contextmanager
def _print_brightness() -> Iterator[None]:
    """Print what is logged of the brightness of the images."""
    log, handler = logging.getLogger("medfusion_monai.data.reading.brightness"), logging.StreamHandler(sys.stdout)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {key: value for key, value in vars(arguments).items() if key not in ("verb", "source", "handler")}


def _print_counts(document: dict[str, Any], output: str) -> None:
    """Print the images and patients per split, next to those of the paper, and the path of the datalist."""
    rows = _count_rows(document["counts"], document["class_names"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells]))
    for key, word in LEFT_OUT.items():
        if document["counts"].get(key):
            print(f"left out as {word}: {document['counts'][key]}")
    if document["counts"].get("synthetic"):
        print(f"images that are marked as synthetic: {document['counts']['synthetic']}")
    if document["counts"].get("duplicates"):
        print(f"images that repeat another one: {document['counts']['duplicates']}")
    print(Path(output) / "datalist.json")


def _count_rows(counts: dict[str, Any], names: Sequence[str]) -> list[list[str]]:
    def row(title: str, group: dict[str, Any]) -> list[str]:
        patients = "-" if group["patients"] is None else str(group["patients"])
        return [title, *(str(group["images"][name]) for name in names), patients]

    rows = [["split", *names, "patients"]]
    for part in ("training", "validation", "test", "all", "reference"):
        if part in counts:
            rows.append(row(part, counts[part]))
        if part in counts.get("paper", {}):
            rows.append(row("  paper", counts["paper"][part]))
    return rows
