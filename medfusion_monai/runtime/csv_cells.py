"""Text in cells of CSV files: spreadsheet programs must not run it as a formula."""

from __future__ import annotations

import re
from typing import Any

FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""The beginning of a cell that a spreadsheet program may run, with any apostrophes before it."""


def inert(value: Any) -> Any:
    """Return a value for a cell: a text that begins as a formula gets an apostrophe; numbers stay as they are."""
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) and not _is_number(value) else value


def original(text: str) -> str:
    """Return the text that ``inert`` was given."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()
