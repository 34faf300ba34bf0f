"""The two columns of a tab: settings, and what they lead to."""

from __future__ import annotations

from collections.abc import Callable

from nicegui import ui


def work_area(show_settings: Callable[[], None], results: str) -> tuple[ui.element, ui.element]:
    """Show settings, and an empty column beside them; return both columns, to add to.

    Args:
        show_settings: adds the fields.
        results: what the other column shows, for screen readers.
    """
    with ui.element("div").classes("work"):
        with ui.element("section").classes("controls").props('aria-label="Settings"') as controls:
            show_settings()
        shown = ui.element("section").classes("results").props(f'aria-label="{results}"')
    return controls, shown
