"""A report as Markdown, as GitHub reads it, with pictures as files beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote

from medfusion_monai.reports.blocks import (
    Block,
    Callout,
    Cell,
    Column,
    Commands,
    Document,
    Group,
    Picture,
    Plot,
    Table,
    letter,
)

SPECIAL = re.compile(r"([\\`*~|\[\]$]|(?<!\w)_|_(?!\w))")  # within a word an underscore is only itself
LINE_START = re.compile(r"^([#+-]|\d+(?=[.)]\s))")


def as_markdown(document: Document) -> str:
    """Render a report."""
    parts = [f"# {text_of(document.title)}"]
    if document.warnings:
        parts.append("\n>\n".join(["> **Warnings**", *(f"> - {text_of(text)}" for text in document.warnings)]))
    parts += [text_of(text) for text in document.summary]
    for section in document.sections:
        parts.append(f"## {text_of(section.title)}")
        parts += [_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def text_of(text: str) -> str:
    """Escape a text, so that it reads in Markdown as it is and nothing in it is taken for HTML."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = SPECIAL.sub(r"\\\1", text)
    return LINE_START.sub(lambda found: f"\\{found[0]}" if not found[0].isdigit() else f"{found[0]}\\", text)


def _block(block: Block) -> str:
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Callout):
        return f"> **{text_of(block.text)}**"
    if isinstance(block, Commands):
        return _commands(block)
    if isinstance(block, Picture):
        return f"![{text_of(block.title)}]({quote(block.file)})\n\n**{text_of(block.title)}.** {text_of(block.caption)}"
    if isinstance(block, Plot):
        return f"![{text_of(block.title)}]({quote(block.file)})"
    return text_of(str(block))


def _commands(block: Commands) -> str:
    lines = "\n".join(block.lines)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", lines)), default=0))
    return f"**{text_of(block.title)}**\n\n{fence}\n{lines}\n{fence}"


def _table(table: Table) -> str:
    lines = [
        f"**{text_of(table.caption)}**",
        "",
        _line([_head(column) for column in table.columns]),
        "|" + "|".join("---:" if column.kind == "number" else "---" for column in table.columns) + "|",
        *(line for group in table.groups for line in _group(group, len(table.columns))),
    ]
    if table.notes:
        lines += ["", *(f"- <sup>{letter(index)}</sup> {text_of(note)}" for index, note in enumerate(table.notes))]
    return "\n".join(lines)


def _group(group: Group, width: int) -> list[str]:
    title = [_line([f"*{text_of(group.title)}*{_marks(group.marks)}", *[""] * (width - 1)])] if group.title else []
    return [*title, *(_line([_cell(cell) for cell in row]) for row in group.rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _head(column: Column) -> str:
    return text_of(column.title) + _marks(column.marks) + (f" ({text_of(column.hint)})" if column.hint else "")


def _cell(cell: Cell) -> str:
    text = text_of(cell.text).replace("\n", "<br>")
    text = f"**{text}**" if cell.best else text
    return text + _marks(cell.marks) + (f" ({text_of(cell.interval)})" if cell.interval else "")


def _marks(marks: str) -> str:
    return f"<sup>{marks}</sup>" if marks else ""
