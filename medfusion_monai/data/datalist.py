"""The datalist: one JSON file with the split, class and patient of each image."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medfusion_monai.data.pixels import PIXELS, refuse_repeats
from medfusion_monai.data.preparing.splits import SPLITS, DataError, split_by_patient
from medfusion_monai.data.training.class_shares import true_shares
from medfusion_monai.runtime.files import look_at_all, make_folders, renamed_when_whole
from medfusion_monai.runtime.values import check_class_names

__all__ = [
    "DataError",
    "find_datalist",
    "make_datalist",
    "missing_files",
    "read_datalist",
    "read_existing",
    "refuse_other_datalist",
    "save_datalist",
    "split_by_patient",
    "write_datalist",
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
    path = find_datalist(dataset_dir)
    items = _items(path, _load(path), split, class_names)
    _refuse_missing_files(path, split, [item["image"] for item in items])
    return items


def read_existing(
    dataset_dir: str | os.PathLike[str], split: str, class_names: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Read the entries of a split whose files exist; a datalist without this split has none.

    Args:
        dataset_dir: as for :func:`read_datalist`, like the other arguments.
        split: name of the split.
        class_names: class names expected by the caller.

    Raises:
        DataError: as :func:`read_datalist`, except for missing files and splits.
    """
    path = find_datalist(dataset_dir)
    document = _load(path)
    if not document.get(split):
        return []
    items = _items(path, document, split, class_names)
    missing = set(missing_files([item["image"] for item in items]))
    return [item for item in items if item["image"] not in missing]


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


def make_datalist(
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
    class_names: Sequence[str],
    source: str,
    seed: int,
    skipped: int = 0,
    reference: Sequence[Mapping[str, Any]] = (),
    counts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of a datalist.

    Args:
        splits: records by split; images are paths relative to the datalist.
        class_names: names in label order.
        source: short text on how the data was made, without absolute paths.
        seed: seed of the split.
        skipped: number of unreadable images left out; added to the counts if above 0.
        reference: reference records for generated images; they may also be in the splits.
        counts: further counts.

    Returns:
        ``class_names``; ``class_shares``, the share of each class in training; ``counts``; ``source``; ``seed``; the
        splits; and ``reference`` if given.

    Raises:
        DataError: for class names that configs cannot hold, and if the name of a file or folder is not in UTF-8, which
            JSON requires.
    """
    _check_class_names(class_names)
    parts = {**splits, REFERENCE: reference} if reference else dict(splits)
    all_counts = {name: count_images(items, class_names) for name, items in parts.items()}
    labels = [item["label"] for item in splits.get("training", ())]
    shares = true_shares(labels, len(class_names)) if labels else [0.0] * len(class_names)
    entries = {
        name: [
            {
                "image": _posix(item["image"]),
                "label": int(item["label"]),
                "patient": str(item["patient"]),
                **({PIXELS: item[PIXELS]} if PIXELS in item else {}),
            }
            for item in items
        ]
        for name, items in parts.items()
    }
    images = [str(item["image"]) for items in entries.values() for item in items]
    _refuse_other_encodings([source, *class_names, *images])
    return {
        "class_names": list(class_names),
        "class_shares": dict(zip(class_names, shares, strict=True)),
        "counts": {**all_counts, **({"skipped": skipped} if skipped else {}), **(counts or {})},
        "source": source,
        "seed": seed,
        **entries,
    }


def count_images(items: Iterable[Mapping[str, Any]], class_names: Sequence[str]) -> dict[str, Any]:
    """Count records: ``images`` of each class by its name, and ``patients``."""
    items = list(items)
    labels = Counter(item["label"] for item in items)
    return {
        "images": {name: labels[label] for label, name in enumerate(class_names)},
        "patients": len({item["patient"] for item in items}),
    }


def write_datalist(
    path: str | os.PathLike[str],
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
    class_names: Sequence[str],
    source: str,
    seed: int,
    skipped: int = 0,
) -> dict[str, Any]:
    """Make a datalist and write it atomically.

    Args:
        path: the file to write; its folder is created.
        splits: as for :func:`make_datalist`, like the other arguments.
        class_names: names in label order.
        source: short text on how the data was made.
        seed: seed of the split.
        skipped: number of unreadable images left out.

    Returns:
        The datalist that was written.

    Raises:
        ValueError: if the folder or the file cannot be written.
    """
    document = make_datalist(splits, class_names, source, seed, skipped)
    save_datalist(path, document)
    return document


def save_datalist(path: str | os.PathLike[str], document: Mapping[str, Any]) -> None:
    """Write a datalist of :func:`make_datalist` atomically; its folder is created.

    Raises:
        ValueError: if the folder or the file cannot be written.
    """
    path = Path(path)
    make_folders([path.parent])
    try:
        with renamed_when_whole(path) as partial:
            partial.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written: {error.strerror or error}. Choose another --output, or remove the obstacle."
        ) from error


def refuse_other_datalist(path: str | os.PathLike[str], document: Mapping[str, Any]) -> None:
    """Raise if writing a document would replace a different datalist.

    Checksums of pixels are compared where the document has them.

    Raises:
        DataError: if the file exists and differs.
    """
    path = Path(path)
    if not os.path.exists(path):
        return
    try:
        same = _without_unknown(json.loads(path.read_text(encoding="utf-8")), document) == document
    except (OSError, ValueError, TypeError, AttributeError):
        same = False
    if not same:
        raise DataError(
            f"{path}: exists and differs from the new datalist. Choose another --output, or replace it with "
            "--overwrite."
        )


def _without_unknown(existing: dict[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    """Return an existing datalist without checksums if a new one has none."""
    if any(PIXELS in item for name in (*SPLITS, REFERENCE) for item in document.get(name, [])):
        return existing
    parts = {name: existing[name] for name in (*SPLITS, REFERENCE) if name in existing}
    return {
        **existing,
        **{name: [{k: v for k, v in item.items() if k != PIXELS} for item in items] for name, items in parts.items()},
    }


def missing_files(paths: Sequence[str]) -> list[str]:
    """Return the paths that are not files, in their order."""
    return [path for path, found in zip(paths, look_at_all(os.path.isfile, paths), strict=True) if not found]


def _posix(path: str | os.PathLike[str]) -> str:
    # Not with pathlib, which takes seconds for the images of a large source.
    return os.fspath(path).replace(os.sep, "/")


def _refuse_other_encodings(names: Sequence[str]) -> None:
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        odd = [name for name in names if any("\ud800" <= character <= "\udfff" for character in name)]
        raise DataError(f"{len(odd)} names are not in UTF-8, first {odd[0]!r}. Rename the files or folders.") from None


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}. Write it again with `medfusion prepare`.") from error
    if not isinstance(document, dict):
        raise DataError(
            f"{path}: contains a JSON {type(document).__name__} instead of an object with the keys {list(SPLITS)}. "
            "Write it again with `medfusion prepare`."
        )
    return document


def _items(
    path: Path, document: Mapping[str, Any], split: str, class_names: Sequence[str] | None
) -> list[dict[str, Any]]:
    names = _agreed_class_names(path, document.get("class_names"), class_names)
    entries = document.get(split)
    if not isinstance(entries, list) or not entries:
        present = [key for key in (*SPLITS, REFERENCE) if document.get(key)]
        found = "is missing" if entries is None else "is empty" if entries == [] else "is not a list"
        raise DataError(
            f"{path}: split '{split}' {found}; filled splits: {present}. "
            "Choose one of them, or prepare the data again with a larger fraction for this split."
        )
    splits = {name: _checked_entries(path, name, document, names) for name in dict.fromkeys([*SPLITS, split])}
    own = {name: splits[name] for name in SPLITS}
    _refuse_shared_patients(path, own)
    try:
        refuse_repeats(own, names or {item["label"]: str(item["label"]) for items in own.values() for item in items})
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    for item in splits[split]:
        item["image"] = os.path.normpath(os.path.join(path.parent, item["image"]))
    return splits[split]


def _checked_entries(
    path: Path, split: str, document: Mapping[str, Any], names: Sequence[str] | None
) -> list[dict[str, Any]]:
    entries = document.get(split) or []
    if not isinstance(entries, list):
        raise DataError(f"{path}: split '{split}' is not a list. Write it again with `medfusion prepare`.")
    return [_checked_item(path, f"{split}[{index}]", entry, names) for index, entry in enumerate(entries)]


def _agreed_class_names(path: Path, own: Any, wanted: Sequence[str] | None) -> list[str] | None:
    if own is not None:
        _check_class_names(own, f"{path}: class_names")
    if wanted is not None:
        _check_class_names(wanted)
    if wanted is not None and own is not None and list(wanted) != own:
        raise DataError(
            f"{path}: its class_names are {own}, but {list(wanted)} are expected. "
            "Set --class_names to those of the datalist, or prepare the data with other --classes."
        )
    return own if wanted is None else list(wanted)


def _check_class_names(names: Any, argument: str = "class_names") -> None:
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


def _refuse_missing_files(path: Path, split: str, images: Sequence[str]) -> None:
    missing = missing_files(images)
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(images)} {split} images do not exist, first {missing[:3]}. "
            "Restore them, or run `medfusion prepare` again with their new location."
        )
