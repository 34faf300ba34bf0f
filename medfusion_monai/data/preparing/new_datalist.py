"""Making a datalist of records, and writing it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medfusion_monai.data.datalist import REFERENCE, check_names
from medfusion_monai.data.pixels import PIXELS
from medfusion_monai.data.preparing.splits import SPLITS, DataError
from medfusion_monai.data.training.class_shares import true_shares
from medfusion_monai.runtime.files import make_folders, renamed_when_whole


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
    check_names(class_names)
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
        with renamed_when_whole(path) as partial, partial.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=1, ensure_ascii=False)  # whole, it would take several times its size
            file.write("\n")
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


def _posix(path: str | os.PathLike[str]) -> str:
    # Not with pathlib, which takes seconds for the images of a large source.
    return os.fspath(path).replace(os.sep, "/")


def _refuse_other_encodings(names: Sequence[str]) -> None:
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        odd = [name for name in names if any("\ud800" <= character <= "\udfff" for character in name)]
        raise DataError(f"{len(odd)} names are not in UTF-8, first {odd[0]!r}. Rename the files or folders.") from None
