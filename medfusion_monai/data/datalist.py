"""The datalist: one JSON file with the split, class and patient of each image; here it is found, read and checked."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medfusion_monai.data.pixels import PIXELS, refuse_repeats
from medfusion_monai.data.preparing.splits import SPLITS, DataError
from medfusion_monai.runtime.files import look_at_all
from medfusion_monai.runtime.values import check_class_names

__all__ = [
    "DataError",
    "check_names",
    "find_datalist",
    "missing_files",
    "read_datalist",
    "read_splits",
]

DATALIST_NAME = "datalist.json"
REFERENCE = "reference"


def read_datalist(
    dataset_dir: str | os.PathLike[str], split: str, class_names: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Read one split of a prepared folder.

    Args:
        dataset_dir: folder of ``datalist.json``.
        split: ``training``, ``validation``, ``test``, or ``reference``, a balanced batch of some sources whose images
            may also be in the splits.
        class_names: class names expected by the caller, in label order; None takes the datalist's own.

    Returns:
        Items with ``image`` (absolute path), ``label`` (int), ``pixels`` (checksum, where the datalist records it) and
        ``patient`` (str; an entry without one is its own patient).

    Raises:
        DataError: for a missing or invalid datalist, an empty split, an invalid entry in any split, other class names,
            missing image files, a patient in two splits, and equal recorded pixels in two splits or under two labels.
    """
    return read_splits(dataset_dir, [split], class_names)[split]


def read_splits(
    dataset_dir: str | os.PathLike[str],
    splits: Sequence[str],
    class_names: Sequence[str] | None = None,
    where_existing: Sequence[str] = (),
) -> dict[str, list[dict[str, Any]]]:
    """Read several splits of a prepared folder at once: the file is read and checked once.

    Args:
        dataset_dir: as for :func:`read_datalist`, like the other arguments and the errors.
        splits: names of the splits.
        class_names: class names expected by the caller.
        where_existing: further splits, which may be missing, of which the entries whose files exist are returned.

    Returns:
        The items of each split by its name.
    """
    path = find_datalist(dataset_dir)
    document = _load(path)
    names = _agreed_class_names(path, document.get("class_names"), class_names)
    for split in splits:
        _refuse_unfilled(path, document, split)
    wanted = [*splits, *where_existing]
    items = {split: _checked_entries(path, split, document, names) for split in dict.fromkeys([*SPLITS, *wanted])}
    _refuse_overlaps(path, {split: items[split] for split in SPLITS}, names)
    items = {split: items[split] for split in wanted}  # the others need not stay in memory
    for split, own in items.items():
        missing = missing_files([item["image"] for item in own])
        if missing and split in splits:
            raise DataError(
                f"{path}: {len(missing)} of {len(own)} {split} images do not exist, first {missing[:3]}. "
                "Restore them, or run `medfusion prepare` again with their new location."
            )
        if missing:
            lost = set(missing)
            items[split] = [item for item in own if item["image"] not in lost]
    return items


def find_datalist(dataset_dir: str | os.PathLike[str]) -> Path:
    """Return the real path of the datalist in a prepared folder.

    Raises:
        DataError: if the folder or the file does not exist.
    """
    advice = "Run `medfusion prepare ... --output DIR` first, or pass its folder as --dataset_dir DIR."
    # Symbolic links are resolved before the relative image paths are joined, since "link/.." is not the link's parent.
    folder = Path(os.path.realpath(dataset_dir))
    if not folder.is_dir():
        raise DataError(f"dataset_dir '{dataset_dir}' is not a folder. {advice}")
    path = folder / DATALIST_NAME
    if not path.is_file():
        raise DataError(f"dataset_dir '{dataset_dir}' does not contain {DATALIST_NAME}. {advice}")
    return path


def missing_files(paths: Sequence[str]) -> list[str]:
    """Return the paths that are not files, in their order."""
    return [path for path, found in zip(paths, look_at_all(os.path.isfile, paths), strict=True) if not found]


def _load(path: Path) -> dict[str, Any]:
    def with_whole_path(entry: dict[str, Any]) -> dict[str, Any]:
        """Join each path while it is read: later, the memory of very many short paths would not be used again."""
        image = entry.get("image")
        if image and isinstance(image, str):
            entry["image"] = os.path.normpath(os.path.join(path.parent, image))
        return entry

    try:
        document = json.loads(path.read_text(encoding="utf-8"), object_hook=with_whole_path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}. Write it again with `medfusion prepare`.") from error
    if not isinstance(document, dict):
        raise DataError(
            f"{path}: contains a JSON {type(document).__name__} instead of an object with the keys {list(SPLITS)}. "
            "Write it again with `medfusion prepare`."
        )
    return document


def _refuse_unfilled(path: Path, document: Mapping[str, Any], split: str) -> None:
    entries = document.get(split)
    if not isinstance(entries, list) or not entries:
        present = [key for key in (*SPLITS, REFERENCE) if document.get(key)]
        found = "is missing" if entries is None else "is empty" if entries == [] else "is not a list"
        raise DataError(
            f"{path}: split '{split}' {found}; filled splits: {present}. "
            "Choose one of them, or prepare the data again with a larger fraction for this split."
        )


def _checked_entries(
    path: Path, split: str, document: dict[str, Any], names: Sequence[str] | None
) -> list[dict[str, Any]]:
    entries = document.pop(split, None) or []
    if not isinstance(entries, list):
        raise DataError(f"{path}: split '{split}' is not a list. Write it again with `medfusion prepare`.")
    for index, entry in enumerate(entries):  # in place, or a very large datalist would be held twice
        entries[index] = _checked_item(path, f"{split}[{index}]", entry, names)
    return entries


def _agreed_class_names(path: Path, own: Any, wanted: Sequence[str] | None) -> list[str] | None:
    if own is not None:
        check_names(own, f"{path}: class_names")
    if wanted is not None:
        check_names(wanted)
    if wanted is not None and own is not None and list(wanted) != own:
        raise DataError(
            f"{path}: its class_names are {own}, but {list(wanted)} are expected. "
            "Set --class_names to those of the datalist, or prepare the data with other --classes."
        )
    return own if wanted is None else list(wanted)


def check_names(names: Any, argument: str = "class_names") -> None:
    """Raise a DataError for class names that configs cannot hold."""
    try:
        check_class_names(names, argument)
    except ValueError as error:
        raise DataError(f"{error}.") from error


def _checked_item(path: Path, place: str, entry: Any, names: Sequence[str] | None) -> dict[str, Any]:
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or not entry["image"]:
        raise DataError(f"{path}: {place} is {entry!r}: it needs 'image', a path relative to the datalist.")
    if "label" not in entry:
        raise DataError(f"{path}: {place} ({entry['image']}) has no 'label': add the index of its class.")
    label = entry["label"]
    if isinstance(label, bool) or not isinstance(label, int):
        raise DataError(
            f"{path}: {place} ({entry['image']}) has label {label!r}: it must be an integer, a class index."
        )
    if label < 0 or (names is not None and label >= len(names)):
        raise DataError(
            f"{path}: {place} ({entry['image']}) has label {label}, outside the classes "
            f"{'0, 1, ...' if names is None else dict(enumerate(names))}. Correct the label, or list all classes."
        )
    pixels = entry.get(PIXELS)
    if pixels is not None and not isinstance(pixels, str):
        raise DataError(
            f"{path}: {place} ({entry['image']}) has {PIXELS} {pixels!r}: it must be the checksum that `medfusion "
            "prepare` writes. Remove it, or prepare the data again."
        )
    patient = entry.get("patient")
    item = {"image": entry["image"], "label": label, "patient": str(entry["image"] if patient is None else patient)}
    return item if pixels is None else {**item, PIXELS: pixels}


def _refuse_shared_patients(path: Path, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    home: dict[str, str] = {}
    shared: dict[str, tuple[str, str]] = {}
    for name, items in splits.items():
        for item in items:
            patient = item["patient"]
            if home.setdefault(patient, name) != name:
                shared[patient] = (home[patient], name)
    if shared:
        patient, (first, second) = next(iter(shared.items()))
        raise DataError(
            f"{path}: {len(shared)} patient(s) are in two splits, first '{patient}' in {first} and {second}. "
            "Split by patient, as `medfusion prepare` does with --patient-column."
        )


def _refuse_overlaps(
    path: Path, splits: Mapping[str, Sequence[Mapping[str, Any]]], names: Sequence[str] | None
) -> None:
    _refuse_shared_patients(path, splits)
    labels = names or {item["label"]: str(item["label"]) for items in splits.values() for item in items}
    try:
        refuse_repeats(splits, labels)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
