"""The parts of a report: sections of tables, pictures and text, rendered to HTML and Markdown alike."""

from __future__ import annotations

from typing import NamedTuple


class Column(NamedTuple):
    """A column of a table; ``kind`` is text, number (right-aligned) or code (may break anywhere)."""

    title: str
    hint: str = ""
    kind: str = "text"
    marks: str = ""  # letters of its footnotes, separated by commas


class Cell(NamedTuple):
    """A cell of a table; ``text`` may have several lines."""

    text: str
    interval: str = ""
    best: bool = False
    marks: str = ""


class Group(NamedTuple):
    """Rows under a common title; no title if a table has one group."""

    title: str
    rows: list[list[Cell]]
    marks: str = ""


class Table(NamedTuple):
    """A table; its first ``head_columns`` columns identify a row, ``notes`` are its footnotes a, b, ..."""

    caption: str
    columns: list[Column]
    groups: list[Group]
    notes: list[str]
    head_columns: int = 1


class Callout(NamedTuple):
    """A prominent sentence."""

    text: str


class Commands(NamedTuple):
    """Shell commands."""

    title: str
    lines: list[str]


class Picture(NamedTuple):
    """A picture of the report: a PNG file beside it, embedded in the HTML; a plot has ``svg`` instead."""

    file: str
    title: str
    caption: str
    svg: bytes = b""


Block = str | Callout | Table | Picture | Commands


class Section(NamedTuple):
    """A heading and its blocks; a string is a paragraph."""

    title: str
    blocks: list[Block]


class Document(NamedTuple):
    """A whole report; ``answer`` precedes all else."""

    title: str
    warnings: list[str]
    summary: list[str]
    sections: list[Section]
    answer: str = ""


def mark(notes: list[str], note: str) -> str:
    """Return the letter of a footnote, adding it if it is new: a, b, ..., z, aa, ab, ..."""
    if note not in notes:
        notes.append(note)
    return letter(notes.index(note))


def letter(index: int) -> str:
    """Count in letters, from 0: a, b, ..., z, aa, ab, ... (numbers would read as powers of the values)."""
    text = ""
    while index >= 0:
        text = chr(ord("a") + index % 26) + text
        index = index // 26 - 1
    return text
