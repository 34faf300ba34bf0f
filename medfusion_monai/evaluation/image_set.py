"""Sets of images to compare: a prepared data set, samples of inference, or a folder of any generator."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medfusion_monai.data.datalist import DATALIST_NAME, REFERENCE, find_datalist, missing_files, read_datalist
from medfusion_monai.data.preparing.class_folders import is_content
from medfusion_monai.data.preparing.download import walk_images
from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.data.reading.images import list_problems
from medfusion_monai.sampling.manifest import read_rows
from medfusion_monai.sampling.plan import MANIFEST

NO_IMAGES = (".csv", ".html", ".json", ".log", ".md", ".pkl", ".pt", ".pth", ".txt", ".yaml", ".yml")


class ImageSet(NamedTuple):
    """Images measured together.

    Args:
        name: of the set in tables.
        items: ``image`` (path) and ``label`` (int, or None without classes) of each image.
        class_names: names in label order; empty without classes.
        source: short description of where the images are from, without absolute paths.
    """

    name: str
    items: list[dict[str, Any]]
    class_names: list[str]
    source: str

    @property
    def paths(self) -> list[str]:
        """The files, in order."""
        return [item["image"] for item in self.items]

    def counts(self) -> dict[str, int]:
        """Number of images per class."""
        labels = Counter(item["label"] for item in self.items)
        return {name: labels[label] for label, name in enumerate(self.class_names)}

    def indices(self, class_name: str) -> list[int]:
        """Indices of the images of a class."""
        if class_name not in self.class_names:
            return []
        label = self.class_names.index(class_name)
        return [index for index, item in enumerate(self.items) if item["label"] == label]


def open_image_set(
    name: str, folder: str | os.PathLike[str], split: str | None = None, class_names: Sequence[str] | None = None
) -> ImageSet:
    """List the images of a folder; nothing is decoded.

    Args:
        name: of the set in tables.
        folder: a prepared data set (``datalist.json``), samples of inference (``manifest.csv``), a folder with one
            sub-folder per class, or a folder of images without classes.
        split: of a prepared data set; None takes ``reference`` if there is one, else ``test``.
        class_names: the expected names of a prepared data set's classes; None takes its own.

    Raises:
        DataError: for a missing folder, no images, a class without images, a missing file of the manifest or datalist,
            or a split of a folder without splits.
    """
    root = Path(os.path.realpath(folder))
    if not os.fspath(folder) or not root.is_dir():  # an empty path must not mean the working directory
        raise DataError(f"{name}: '{folder}' is not a folder. Name the folder of its images.")
    if (root / DATALIST_NAME).is_file():
        return _of_datalist(name, root, split, class_names)
    if split is not None:
        raise DataError(
            f"{name}: '{folder}' has no {DATALIST_NAME} and therefore no split '{split}'. Leave the split out."
        )
    if (root / MANIFEST).is_file():
        return _of_manifest(name, root)
    return _of_folder(name, root)


def default_reference(dataset_dir: str | os.PathLike[str]) -> str:
    """Return the split that generated images are compared with: ``reference`` if there is one, else ``test``.

    Raises:
        DataError: from ``find_datalist``. Errors within the datalist are left to ``read_datalist``.
    """
    return REFERENCE if _document(find_datalist(dataset_dir)).get(REFERENCE) else "test"


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _of_datalist(name: str, root: Path, split: str | None, class_names: Sequence[str] | None) -> ImageSet:
    split = split or default_reference(root)
    items = [{"image": item["image"], "label": item["label"]} for item in read_datalist(root, split, class_names)]
    # A datalist need not name its classes: label k is then called k, in every split.
    numbers = map(str, range(1 + max(item["label"] for item in items)))
    names = list(class_names or _document(root / DATALIST_NAME).get("class_names") or numbers)
    return ImageSet(name, items, names, f"split '{split}' of the data set '{root.name}'")


def _of_manifest(name: str, root: Path) -> ImageSet:
    rows = read_manifest(root / MANIFEST)
    classes = {(int(row["label"]), row["class_name"]) for row in rows.values()}
    known = dict(classes)
    if not len(classes) == len(known) == len(set(known.values())):
        raise DataError(
            f"{root / MANIFEST}: labels and class names do not match one to one: {sorted(classes)}. Keep the "
            "samples of each model in a separate folder."
        )
    order = sorted(known)
    items: list[dict[str, Any]] = [
        {"image": str(root / file), "label": order.index(int(row["label"]))} for file, row in sorted(rows.items())
    ]
    missing = missing_files([item["image"] for item in items])
    if missing:
        raise DataError(
            list_problems(f"{name}: {len(missing)} of {len(items)} samples of the manifest do not exist", missing)
            + "\nRun inference again to write the missing ones."
        )
    return ImageSet(name, items, [known[label] for label in order], f"samples of inference in '{root.name}'")


def read_manifest(path: Path) -> dict[str, dict[str, str]]:
    """Return the rows of a manifest by file.

    Raises:
        DataError: if it cannot be read, or lists no samples with label and class.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = read_rows(file)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV: {error}. Run inference again.") from error
    whole = all(str(row.get("label")).isdecimal() and row.get("class_name") for row in rows.values())
    if not rows or not whole:
        raise DataError(f"{path}: lists no samples with file, label and class_name. Run inference again.")
    return rows


def _of_folder(name: str, root: Path) -> ImageSet:
    files: list[tuple[str, str]] = [
        (inner, file) for inner, file in walk_images(root, ("",)) if is_content(file) and not _is_note(file)
    ]
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and is_content(path.name))
    if not files:
        raise DataError(f"{name}: '{root}' contains no images. Name the folder of its images.")
    items: list[dict[str, Any]]
    if not folders:
        items = [{"image": str(root / file), "label": None} for _, file in files]
        return ImageSet(name, items, [], f"folder '{root.name}'")
    loose = [file for inner, file in files if not inner]
    filled = {inner.partition("/")[0] for inner, _ in files if inner}
    empty = [folder for folder in folders if folder not in filled]
    if empty or loose:
        problem = f"classes {empty} have no images" if empty else f"{len(loose)} images are beside the sub-folders"
        raise DataError(
            f"{name}: {problem} ('{root}', sub-folders {folders}). Use one sub-folder per class, each with images, or "
            "only images."
        )
    items = [
        {"image": str(root / inner / file), "label": folders.index(inner.partition("/")[0])} for inner, file in files
    ]
    return ImageSet(name, items, folders, f"folder '{root.name}', one sub-folder per class")


def _is_note(file: str) -> bool:
    return file.lower().endswith(NO_IMAGES)
