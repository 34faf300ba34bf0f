"""Reads folders that hold one sub-folder per class."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medfusion_monai.data.datalist import DATALIST_NAME
from medfusion_monai.data.preparing.download import walk_images
from medfusion_monai.data.preparing.patients import SALT_NAME
from medfusion_monai.data.preparing.splits import DataError, own_patients
from medfusion_monai.data.reading.brightness import SHEET_NAME
from medfusion_monai.data.reading.images import list_problems

logger = logging.getLogger(__name__)

SYSTEM_FILES = ("thumbs.db", "desktop.ini")


def records_of_subfolders(root: Path, output: Path, chosen: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return a record per image, with ``image``, ``value`` (the sub-folder) and ``patient``.

    Args:
        root: folder of the sub-folders.
        output: skipped if it is in the root.
        chosen: names of the sub-folders to read; None reads all.

    Raises:
        DataError: if the root cannot be listed, lacks a chosen sub-folder, or has no images in sub-folders.
    """
    own = os.path.realpath(output)
    try:
        entries = sorted(path for path in root.iterdir() if is_content(path.name) and os.path.realpath(path) != own)
    except OSError as error:
        raise DataError(f"root '{root}' cannot be listed: {error.strerror or error}. Check its permissions.") from error
    folders = [path for path in entries if os.path.isdir(path)]
    if chosen is not None:
        present = [folder.name for folder in folders]
        absent = [name for name in chosen if name not in present]
        if absent:
            raise DataError(f"root '{root}' has no sub-folders {absent}; present: {present}. Correct --where folder=.")
        entries = folders = [folder for folder in folders if folder.name in chosen]
    records: list[dict[str, Any]] = [
        {"image": os.path.join(folder, inner, name), "value": folder.name}  # a Path would take five times the memory
        for folder in folders
        for inner, name in walk_images(folder, ("",))
        if is_content(name)
    ]
    if not records:
        raise DataError(
            f"root '{root}' has no images in sub-folders (sub-folders: {[folder.name for folder in folders]}). "
            "Create one sub-folder per class, or pass a table with --csv."
        )
    used = {DATALIST_NAME, SALT_NAME, SHEET_NAME, *(record["value"] for record in records)}
    unused = [path.name for path in entries if path.name not in used]
    if unused:
        logger.warning(
            "%s", list_problems(f"{len(unused)} entries of '{root}' are not folders of images and are not used", unused)
        )
    own_patients(records, root)
    return records


def refuse_output_among_classes(root: Path, output: Path, copy: bool) -> None:
    """Raise if the output would be read as a class or hide one; an earlier output is accepted."""
    parts = Path(os.path.relpath(os.path.realpath(output), os.path.realpath(root))).parts
    if parts[:1] == (os.pardir,):
        return
    is_class = (
        len(parts) == 1 and os.path.isdir(output) and os.listdir(output) and not (output / DATALIST_NAME).exists()
    )
    if len(parts) > 1 or is_class or (copy and not parts):
        raise DataError(f"output '{output}' is among the classes of root '{root}'. Choose an --output outside it.")


def is_content(name: str) -> bool:
    """Return whether a file or folder is a user's: not hidden, and not created by the operating system."""
    return not name.startswith((".", "__MACOSX")) and name.lower() not in SYSTEM_FILES
