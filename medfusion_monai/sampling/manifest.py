"""CSV lists of files that grow during a run: each process writes its own, and at the end one is left."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medfusion_monai.runtime.csv_cells import inert, original
from medfusion_monai.runtime.files import renamed_when_whole, reported_when_full

Rows = dict[str, dict[str, str]]
"""Rows by their column ``file``."""


class RowList:
    """A list of rows in a folder. The first process writes ``NAME.csv``, the others ``NAME.RANK.csv``.

    Args:
        folder: of the list.
        name: of the file, with ``.csv``.
        rank: number of this process.
    """

    def __init__(self, folder: str | Path, name: str, rank: int = 0) -> None:
        self.main = Path(folder) / name
        self.path = self.main if rank == 0 else self._beside(str(rank))
        self._ends_whole = False

    def paths(self) -> list[Path]:
        """Return the path of the list, even if it does not exist, and of those that other processes left."""
        parts = self.main.parent.glob(self._beside("*").name)
        return [self.main, *sorted(path for path in parts if path.name.split(".")[1].isdecimal())]

    @staticmethod
    def read(path: Path) -> Rows:
        """Return the rows of a file, without a line that a kill cut off; none if the file does not exist."""
        if not path.is_file():
            return {}
        whole = _whole_lines(path.read_bytes())
        return read_rows(io.StringIO(whole.decode("utf-8-sig"), newline=""))

    def append(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        """Append rows to the list of this process, as fast in a long run as in a short one.

        Raises:
            DiskFullError: if the disk is full.
        """
        with reported_when_full(self.path):
            if not self._ends_whole and self.path.is_file():
                os.truncate(self.path, len(_whole_lines(self.path.read_bytes())))
            self._ends_whole = True
            is_new = not self.path.exists() or self.path.stat().st_size == 0
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                write_rows(file, rows, columns, header=is_new)

    def make_one(self, rows: Mapping[str, Mapping[str, Any]], columns: Sequence[str]) -> None:
        """Rewrite the list, each file once and sorted, and remove the lists of other processes."""
        with renamed_when_whole(self.main) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
            write_rows(file, [rows[name] for name in sorted(rows)], columns, header=True)
        for path in self.paths()[1:]:
            path.unlink()

    def _beside(self, part: str) -> Path:
        return self.main.with_name(f"{self.main.stem}.{part}{self.main.suffix}")


def read_rows(file: Iterable[str]) -> Rows:
    """Return the rows of an open list that have a file."""
    rows = ({name: original(text or "") for name, text in row.items() if name} for row in csv.DictReader(file))
    return {row["file"]: row for row in rows if row.get("file")}


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def write_rows(file: Any, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], header: bool) -> None:
    """Write rows to an open list, cells that a spreadsheet program would run as texts."""
    table = csv.DictWriter(file, columns, lineterminator="\n")
    if header:
        table.writeheader()
    table.writerows({name: inert(value) for name, value in row.items()} for row in rows)
