"""Reads text tables with a row per image and named columns."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from medfusion_monai.data.preparing.splits import DataError

ADVICE = "Correct --csv, --image-column, --label-column, --patient-column, --split-column or --where."


def read_rows(path: Path, columns: Sequence[str], where: Mapping[str, str]) -> list[dict[str, str]]:
    """Read the rows of a table that have given values.

    Args:
        path: text table in UTF-8 with a header; comma, semicolon or tab between columns.
        columns: columns that must exist and be filled.
        where: keep the rows that have these values in these columns.

    Returns:
        The rows; the values of ``columns`` are stripped of surrounding space.

    Raises:
        DataError: for a missing table, missing columns, no matching rows, and empty cells.
    """
    wanted = [*columns, *where]
    rows, _ = read_columns(path, wanted, ADVICE)
    kept = [row for row in rows if all(row[column].strip() == value for column, value in where.items())]
    if not kept:
        chosen = ", ".join(f"{column}={value}" for column, value in where.items())
        raise DataError(f"{path}: none of {len(rows)} rows has {chosen or 'content'}. Correct --where or the table.")
    _refuse_empty_cells(path, kept, wanted)
    return [row | {column: row[column].strip() for column in columns} for row in kept]


def read_columns(path: Path, columns: Sequence[str], advice: str) -> tuple[list[dict[str, str]], list[int]]:
    """Read columns of a table.

    Args:
        path: text table in UTF-8 with a header; comma, semicolon or tab between columns.
        columns: columns that must exist.
        advice: what to do if the table or a column is missing.

    Returns:
        The rows, with empty text where a row is too short, and their line numbers.

    Raises:
        DataError: for a missing table, and for missing or repeated columns.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            # In some locales spreadsheets write semicolons into .csv files.
            reader = csv.DictReader(file, restval="", delimiter=max(",;\t", key=first.count))
            _refuse_missing_columns(path, reader.fieldnames or [], columns, advice)
            rows: list[dict[str, str]] = []
            lines: list[int] = []
            for row in reader:
                rows.append({column: row[column] for column in columns})
                lines.append(reader.line_num)
            return rows, lines
    except OSError as error:
        raise DataError(f"table '{path}' cannot be opened: {error.strerror or error}. {advice}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"table '{path}' is not a UTF-8 text table: {error}. Save it as CSV in UTF-8.") from error


def _refuse_missing_columns(path: Path, header: Sequence[str], wanted: Sequence[str], advice: str) -> None:
    missing = [column for column in wanted if column not in header]
    if missing:
        near = {column: difflib.get_close_matches(column, header, n=3, cutoff=0.5) for column in missing}
        hints = "; ".join(f"'{column}' is close to {names}" for column, names in near.items() if names)
        raise DataError(
            f"{path}: columns {missing} are missing; present: {list(header)}. {hints + '. ' if hints else ''}{advice}"
        )
    repeated = sorted({column for column in wanted if header.count(column) > 1})
    if repeated:
        raise DataError(f"{path}: columns {repeated} occur more than once. Rename or remove all but one of each.")


def _refuse_empty_cells(path: Path, rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> None:
    for column in columns:
        empty = sum(not row[column].strip() for row in rows)
        if empty:
            raise DataError(f"{path}: column '{column}' is empty in {empty} of {len(rows)} rows. Fill or remove them.")
