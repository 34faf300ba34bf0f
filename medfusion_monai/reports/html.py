"""A report as one HTML file that needs nothing else: no scripts, no fonts, no pictures from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

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
    Section,
    Table,
    letter,
)
from medfusion_monai.reports.style import CSS

# Should anything ever slip through the escaping, the browser still loads and runs nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
FOOTER = "Written by Medfusion for MONAI; {} holds the same figures. Research software: not for diagnosis."


def as_html(
    document: Document, pictures: Mapping[str, tuple[bytes, tuple[int, int]]], figures: str = "report.json"
) -> str:
    """Render a report.

    Args:
        document: the report.
        pictures: from a picture's file name to the bytes of its PNG and its width and height.
        figures: name of the file with the same figures.
    """
    title = escape(document.title)
    body = [f"<h1>{title}</h1>"]
    if document.warnings:
        items = "".join(f"<li>{escape(text)}</li>" for text in document.warnings)
        body.append('<section class="warning" aria-labelledby="warnings"><h2 id="warnings">Warnings</h2>')
        body.append(f"<ul>{items}</ul></section>")
    body += [f"<p>{escape(text)}</p>" for text in document.summary]
    links = "".join(f'<li><a href="#{_id(i)}">{escape(s.title)}</a></li>' for i, s in enumerate(document.sections))
    body.append(f'<nav aria-label="Contents"><ul>{links}</ul></nav>')
    for index, section in enumerate(document.sections):
        body += _section(section, _id(index), pictures)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{CSS}</style>
</head>
<body>
<main>
{chr(10).join(body)}
</main>
<footer>{escape(FOOTER.format(figures))}</footer>
</body>
</html>
"""


def _id(index: int) -> str:
    return f"section-{index + 1}"


def _section(section: Section, name: str, pictures: Mapping[str, tuple[bytes, tuple[int, int]]]) -> list[str]:
    parts = [f'<section aria-labelledby="{name}">', f'<h2 id="{name}">{escape(section.title)}</h2>']
    for number, block in enumerate(section.blocks):
        if isinstance(block, Picture):
            parts.append(_picture(block, *pictures[block.file]))
        else:
            parts.append(_block(block, f"{name}-{number + 1}"))
    return [*parts, "</section>"]


def _block(block: Block, name: str) -> str:
    if isinstance(block, Table):
        return _table(block, name)
    if isinstance(block, Callout):
        return f'<div class="warning" role="note"><p><b>{escape(block.text)}</b></p></div>'
    if isinstance(block, Commands):
        lines = escape("\n".join(block.lines))
        return f'<h3>{escape(block.title)}</h3>\n<pre><code class="code">{lines}</code></pre>'
    if isinstance(block, Plot):
        return f"<figure>{block.svg}<figcaption>{escape(block.title)}</figcaption></figure>"
    return f"<p>{escape(str(block))}</p>"


def _picture(picture: Picture, png: bytes, size: tuple[int, int]) -> str:
    source = base64.b64encode(png).decode("ascii")
    alt = escape(f"{picture.title}. {picture.caption}".strip(), quote=True)
    return (
        f'<figure><img src="data:image/png;base64,{source}" width="{size[0]}" height="{size[1]}" alt="{alt}">'
        f"<figcaption><b>{escape(picture.title)}.</b> {escape(picture.caption)}</figcaption></figure>"
    )


def _table(table: Table, name: str) -> str:
    heads = "".join(
        f'<th scope="col" class="{column.kind}">{escape(column.title)}{_marks(column.marks, name)}{_hint(column)}</th>'
        for column in table.columns
    )
    parts = [
        # A box that scrolls takes the keyboard's focus, so that it can be scrolled without a mouse.
        f'<div class="table"><div class="scroll" tabindex="0" role="region" aria-labelledby="{name}">',
        f'<table><caption id="{name}"><span>{escape(table.caption)}</span></caption>',
        f"<thead><tr>{heads}</tr></thead>",
        *(_group(group, table, name) for group in table.groups),
        "</table></div>",
    ]
    if table.notes:
        notes = "".join(
            f'<li id="{name}-{letter(index)}"><sup>{letter(index)}</sup>{escape(note)}</li>'
            for index, note in enumerate(table.notes)
        )
        parts.append(f'<ul class="notes">{notes}</ul>')
    return "\n".join([*parts, "</div>"])


def _hint(column: Column) -> str:
    return f" <small>{escape(column.hint)}</small>" if column.hint else ""


def _group(group: Group, table: Table, name: str) -> str:
    parts = ["<tbody>"]
    if group.title:
        title = f"<span>{escape(group.title)}{_marks(group.marks, name)}</span>"
        parts.append(f'<tr class="group"><th colspan="{len(table.columns)}" scope="rowgroup">{title}</th></tr>')
    parts += [_row(row, table, name) for row in group.rows]
    return "\n".join([*parts, "</tbody>"])


def _row(row: Sequence[Cell], table: Table, name: str) -> str:
    cells = []
    for index, (cell, column) in enumerate(zip(row, table.columns, strict=True)):
        tag, scope = ("th", ' scope="row"') if index < table.head_columns else ("td", "")
        cells.append(f'<{tag}{scope} class="{column.kind}">{_cell(cell, name)}</{tag}>')
    return f"<tr>{''.join(cells)}</tr>"


def _cell(cell: Cell, name: str) -> str:
    text = escape(cell.text).replace("\n", "<br>").replace("_", "_<wbr>")  # names break there first
    text = f"<strong>{text}</strong>" if cell.best else text
    ends = escape(cell.interval).replace(" to ", " to&nbsp;")  # two lines at most
    interval = f' <span class="interval">({ends})</span>' if ends else ""
    return text + _marks(cell.marks, name) + interval


def _marks(marks: str, name: str) -> str:
    return f'<sup><a href="#{name}-{marks}">{marks}</a></sup>' if marks else ""
