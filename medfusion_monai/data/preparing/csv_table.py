"""Reads text tables with a row per image and named columns."""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from medfusion_monai.data.preparing.splits import DataError

ADVICE = "Correct --csv, --image-column, --label-column, --patient-column, --split-column or --where."


def read_rows(
    path: Path, columns: Sequence[str], where: Mapping[str, Sequence[str]], may_be_empty: Sequence[str] = ()
) -> list[dict[str, str]]:
    """Read the rows of a table that have given values.

    Args:
        path: text table, see :func:`read_columns`.
        columns: columns that must exist and be filled.
        where: keep the rows that have one of these values in each of these columns.
        may_be_empty: columns of ``columns`` that need not be filled.

    Returns:
        The rows; the values of ``columns`` are stripped of surrounding space.

    Raises:
        DataError: for a missing table, missing columns, no matching rows, and empty cells.
    """
    wanted = [*columns, *where]
    rows, _ = read_columns(path, wanted, ADVICE)
    kept = [row for row in rows if all(row[column].strip() in values for column, values in where.items())]
    if not kept:
        chosen = describe_where(where)
        raise DataError(f"{path}: none of {len(rows)} rows has {chosen or 'content'}. Correct --where or the table.")
    _refuse_empty_cells(path, kept, [column for column in wanted if column not in may_be_empty])
    return [row | {column: row[column].strip() for column in columns} for row in kept]


def describe_where(where: Mapping[str, Sequence[str]]) -> str:
    """Return chosen values in words, e.g. ``site=a or b, view=PA``."""
    return ", ".join(f"{column}={' or '.join(values)}" for column, values in where.items())


def read_columns(path: Path, columns: Sequence[str], advice: str) -> tuple[list[dict[str, str]], list[int]]:
    """Read columns of a table strictly: a damaged row is an error, since its cells would belong to other columns.

    Args:
        path: text table with a header, in UTF-8 or in UTF-16 with a byte-order mark. Columns are separated by comma,
            semicolon or tab, or as Excel's first line ``sep=;`` states.
        columns: columns that must exist.
        advice: what to do if the table or a column is missing.

    Returns:
        The rows and their line numbers; blank lines are skipped.

    Raises:
        DataError: for a file that is missing or not a text table, missing or repeated columns, and, with the line,
            rows with more or fewer cells than the header, and quotes that are not closed.
    """
    path = Path(path)
    text, first = _without_separator_line(_read_text(path, advice))
    # In some locales spreadsheets write semicolons into .csv files.
    separator = first or max(",;\t", key=re.sub('"[^"]*"', "", re.split("[\r\n]", text, maxsplit=1)[0]).count)
    numbered = _numbered_rows(path, text, separator, skipped=1 if first else 0)
    _, header = next(numbered, (0, []))
    _refuse_missing_columns(path, header, columns, advice)
    places = {column: header.index(column) for column in columns}
    rows: list[dict[str, str]] = []
    lines: list[int] = []
    for line, cells in numbered:
        _refuse_other_length(path, line, cells, header, separator)
        rows.append({column: cells[place] for column, place in places.items()})
        lines.append(line)
    return rows, lines


def _read_text(path: Path, advice: str) -> str:
    if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would wait forever
        raise DataError(
            f"table '{path}' is {'a folder' if path.is_dir() else 'a pipe or device'}, not a file. {advice}"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"table '{path}' cannot be opened: {error.strerror or error}. {advice}") from error
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
        broken, reason = text.find("\0"), "a zero character"
        line = text.count("\n", 0, max(broken, 0)) + 1
    except UnicodeDecodeError as error:
        broken, reason = error.start, str(error)
        line = content[: error.start].decode(encoding, errors="replace").count("\n") + 1
    if broken >= 0:
        raise DataError(f"table '{path}', line {line} is not UTF-8 text: {reason}. Save it as CSV in UTF-8.")
    return text


def _without_separator_line(text: str) -> tuple[str, str]:
    """Return a table without Excel's first line ``sep=;``, and its separator, or "" without this line."""
    found = re.match(r'"?sep=(.)"?\r?\n', text)
    return (text[found.end() :], found[1]) if found else (text, "")


def _numbered_rows(path: Path, text: str, separator: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each row that is not blank, with the number of its first line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    while True:
        line = reader.line_num + 1 + skipped
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"table '{path}', line {line}: {error}. Close or remove the quotes of this row, or save the table as "
                "CSV in UTF-8."
            ) from error
        if cells:
            yield line, cells


def _refuse_other_length(path: Path, line: int, cells: Sequence[str], header: Sequence[str], separator: str) -> None:
    if len(cells) != len(header):
        raise DataError(
            f"table '{path}', line {line}: the row has {len(cells)} cells, the header {len(header)}. Quote cells that "
            f"contain {separator!r}, and fill up short rows."
        )
    # Two stray quotes in one column merge their rows and all rows between into one of the right length. The merged
    # cell then contains at least the separators of one row.
    for cell in cells:
        if ("\n" in cell or "\r" in cell) and cell.count(separator) >= len(header) - 1:
            raise DataError(
                f"table '{path}', line {line}: a quoted cell spans {len(cell.splitlines())} lines and contains the "
                "separators of a whole row. Close or remove its quotes, or remove the line breaks within the cell."
            )


def _refuse_missing_columns(path: Path, header: Sequence[str], wanted: Sequence[str], advice: str) -> None:
    missing = [column for column in wanted if column not in header]
    if missing:
        near = {column: _near_names(column, header) for column in missing}
        hints = "; ".join(f"'{column}' is close to {names}" for column, names in near.items() if names)
        raise DataError(
            f"{path}: columns {missing} are missing; present: {list(header)}. {hints + '. ' if hints else ''}{advice}"
        )
    repeated = sorted({column for column in wanted if header.count(column) > 1})
    if repeated:
        raise DataError(f"{path}: columns {repeated} occur more than once. Rename or remove all but one of each.")


def _near_names(name: str, header: Sequence[str]) -> list[str]:
    """Return the columns that a name may be a misspelling of; "age" is not one of "image"."""
    folded = {column.casefold(): column for column in header}
    return [folded[near] for near in difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.8)]


def _refuse_empty_cells(path: Path, rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> None:
    for column in columns:
        empty = sum(not row[column].strip() for row in rows)
        if empty:
            raise DataError(f"{path}: column '{column}' is empty in {empty} of {len(rows)} rows. Fill or remove them.")
