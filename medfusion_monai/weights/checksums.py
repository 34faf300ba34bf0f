"""Checksums of weights: ``checksums.sha256`` beside them, as ``sha256sum --check`` reads it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from medfusion_monai.runtime.files import file_sha256, renamed_when_whole

CHECKSUMS = "checksums.sha256"
ODD_BYTES = "surrogateescape"  # file names need not be UTF-8
LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


def checksums_text(files: Iterable[str | Path], folder: str | Path | None = None) -> str:
    """Return the checksums of files, sorted by name, in the format of ``sha256sum``.

    Args:
        files: the files.
        folder: in which they are, for names that are their paths in it; None for their bare names.
    """
    named = {path.name if folder is None else path.relative_to(folder).as_posix(): path for path in map(Path, files)}
    return "".join(f"{file_sha256(named[name])}  {name}\n" for name in sorted(named))


def expected_sha256(path: str | Path) -> str | None:
    """Return the checksum of a file according to the list beside it, or None if it is not listed.

    Raises:
        ValueError: for a line of the list that is not a checksum and a file name.
        OSError: for a list that cannot be read, also a folder or a link to nothing in its place.
    """
    path = Path(path)
    found = None
    for number, line in enumerate(_lines(path), start=1):
        match = LINE.fullmatch(line)
        if line and match is None:
            raise ValueError(f"line {number} is not a checksum and a file name")
        if match is not None and _names(line, path):
            found = match[1].lower()
    return found


def forget_checksum(path: str | Path) -> None:
    """Remove a file that is about to be replaced from the list beside it, or the new one would be refused."""
    path = Path(path)
    listed = path.with_name(CHECKSUMS)
    if not listed.is_file():  # nothing to forget; reading reports what else is in its place
        return
    lines = _lines(path)
    kept = [line for line in lines if not _names(line, path)]
    if kept == lines:
        return
    if not any(kept):
        listed.unlink()
        return
    with renamed_when_whole(listed) as partial:
        partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8", errors=ODD_BYTES)


def _names(line: str, path: Path) -> bool:
    """Return whether a line is of this file, whose name may be written as ``./name``."""
    return os.path.normpath(line[66:]) == path.name


def _lines(path: Path) -> list[str]:
    listed = path.with_name(CHECKSUMS)
    return listed.read_text(encoding="utf-8", errors=ODD_BYTES).splitlines() if os.path.lexists(listed) else []
