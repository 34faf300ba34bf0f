"""Text in any HTML element."""

from __future__ import annotations

from nicegui.elements.mixins.text_element import TextElement


def text(tag: str, content: str) -> TextElement:
    """Show text, which is never read as HTML, in an element of this tag, e.g. ``h2``."""
    return TextElement(tag=tag, text=content)
