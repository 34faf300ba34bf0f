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

from medfusion_monai.cli.arguments import column_value, positive, seed

if TYPE_CHECKING:
    from medfusion_monai.data.preparing.image_table import ImageTable

DOWNLOADS = {
    "chexpert": "CheXpert: frontal chest X-rays with or without cardiomegaly; valid.csv is not used",
    "airogs": "AIROGS: eye fundus photographs with or without referable glaucoma",
    "crcdx": "CRC-DX: tiles of colorectal cancer, microsatellite instable or stable",
}
"""Public data sets by name, each read by ``prepare_NAME`` of ``data/preparing/NAME.py``."""


def add_prepare(subparsers: Any) -> None:
    """Add ``medfusion prepare``, with a sub-command per source."""
    parser = subparsers.add_parser("prepare", help="write the datalist of a source of images")
    sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    _add_prepare_folder(sources)
    _add_prepare_phantoms(sources)
    for name, text in DOWNLOADS.items():
        _add_prepare_download(sources, name, text)


def _add_prepare_folder(sources: Any) -> None:
    parser = sources.add_parser("folder", help="images in one sub-folder per class, or listed in a table")
    parser.add_argument("--root", required=True, help="folder of the images")
    parser.add_argument("--csv", help="table with a row per image; without it, --root must have a sub-folder per class")
    parser.add_argument("--image-column", default="image", help="column of the image paths relative to --root (image)")
    parser.add_argument("--label-column", default="label", help="column of the classes (label)")
    parser.add_argument("--patient-column", help="column of the patients; without it, each image is its own patient")
    parser.add_argument(
        "--split-column", help="column of given splits (training, validation, test), replaces --fractions and --seed"
    )
    parser.add_argument(
        "--where",
        action="append",
        type=column_value,
        default=[],
        metavar="COLUMN=VALUE",
        help="keep only rows with this value; repeatable",
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="VALUE[=NAME]",
        help="label values in order, with names (all values, sorted)",
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
    parser.add_argument("--copy", action="store_true", help="copy the images to OUTPUT/images")
    parser.add_argument("--check", action="store_true", help="no effect: every image of this source is always decoded")
    _add_common(parser)
    parser.set_defaults(handler=_prepare_folder)


def _add_prepare_phantoms(sources: Any) -> None:
    parser = sources.add_parser("phantoms", help="drawn images whose class can be measured")
    parser.add_argument("--modality", default="cxr", help="cxr, fundus or histo (cxr)")
    parser.add_argument("--num-images", type=positive, default=2000, help="total number of images (2000)")
    parser.add_argument("--size", type=positive, default=64, help="height and width in pixels (64)")
    _add_common(parser)
    parser.set_defaults(handler=_prepare_phantoms)


def _add_prepare_download(sources: Any, name: str, text: str) -> None:
    parser = sources.add_parser(name, help=text)
    parser.add_argument("--root", required=True, help="folder of the original download")
    parser.add_argument("--allow-missing", action="store_true", help="leave out missing images")
    parser.add_argument("--check", action="store_true", help="decode every image before writing the datalist")
    _add_common(parser)
    parser.set_defaults(handler=_prepare_download)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, help="folder for datalist.json")
    parser.add_argument(
        "--fractions",
        nargs=3,
        type=float,
        default=(0.8, 0.1, 0.1),
        metavar=("TRAINING", "VALIDATION", "TEST"),
        help="shares of the patients (0.8 0.1 0.1)",
    )
    parser.add_argument("--seed", type=seed, default=0, help="seed of all random choices (0)")
    parser.add_argument("--overwrite", action="store_true", help="replace a different datalist")


def _prepare_folder(arguments: argparse.Namespace) -> int:
    from medfusion_monai.data.preparing.folder import ImageRules, prepare_folder

    options = _options(arguments)
    del options["check"]
    table = _image_table(options)
    rules = ImageRules(*(options.pop(name) for name in ImageRules._fields))
    with _print_brightness():
        document = prepare_folder(**options, table=table, rules=rules)
    _print_counts(document, arguments.output)
    return 0


def _image_table(options: dict[str, Any]) -> ImageTable | None:
    """Remove the options of a table from the others, and return the table, or None without --csv."""
    from medfusion_monai.data.preparing.image_table import ImageTable

    path, where = options.pop("csv"), options.pop("where")
    columns = {name: options.pop(name) for name in ("image_column", "label_column", "patient_column", "split_column")}
    chosen = [column for column, _ in where]
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"--where has a column twice: {chosen}. Use one value per column.")
    if path is not None:
        return ImageTable(path, **columns, where=dict(where))
    if where or columns["patient_column"] or columns["split_column"]:
        raise ValueError("--where, --patient-column and --split-column need a table. Pass it with --csv.")
    return None


def _prepare_phantoms(arguments: argparse.Namespace) -> int:
    from medfusion_monai.demo.phantoms.families import prepare_phantoms

    _print_counts(prepare_phantoms(**_options(arguments)), arguments.output)
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
    for key, word in (("lateral", "lateral"), ("missing", "missing"), ("skipped", "unreadable")):
        if document["counts"].get(key):
            print(f"left out as {word}: {document['counts'][key]}")
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
