"""A report as one self-contained HTML file, and as Markdown with pictures as separate files."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from medfusion_monai.report.page_parts import Document, letter

SPECIAL = re.compile(r"([\\`*~|\[\]$]|(?<!\w)_|_(?!\w))")  # an underscore within a word is literal
LINE_START = re.compile(r"^([#+-]|\d+(?=[.)]\s))")
MEDIA_TYPES = {"png": "image/png", "svg": "image/svg+xml"}


def as_html(document: Document, pictures: Mapping[str, bytes], figures: str = "report.json") -> str:
    """Render a report as HTML with embedded pictures.

    Args:
        document: the report.
        pictures: content of the picture files by name.
        figures: name of the file with the same figures.
    """
    sources = {
        file: f"data:{MEDIA_TYPES[file[-3:].lower()]};base64,{base64.b64encode(content).decode('ascii')}"
        for file, content in pictures.items()
    }
    return _environment().get_template("report.html.jinja").render(document._asdict(), sources=sources, figures=figures)


def as_markdown(document: Document) -> str:
    """Render a report as GitHub Markdown."""
    return _environment(finalize=_escaped).get_template("report.md.jinja").render(document._asdict())


def text_of(text: str) -> str:
    """Escape a text so Markdown shows it literally and treats nothing in it as HTML."""
    text = SPECIAL.sub(r"\\\1", escape(text, quote=False))
    return LINE_START.sub(lambda found: f"\\{found[0]}" if not found[0].isdigit() else f"{found[0]}\\", text)


def _environment(**options: Any) -> Environment:
    environment = Environment(
        loader=PackageLoader("medfusion_monai.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    environment.filters.update(
        kind=lambda block: type(block).__name__, letter=letter, markdown=_escaped, fenced=_fenced
    )
    return environment


def _escaped(value: Any) -> Markup:
    """Escape a value for Markdown, unless it is marked as safe."""
    return value if isinstance(value, Markup) else Markup(text_of(str(value)))


def _fenced(lines: Sequence[str]) -> Markup:
    """Put lines between fences longer than any in the lines."""
    text = "\n".join(lines)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return Markup("\n".join([fence, text, fence]))
