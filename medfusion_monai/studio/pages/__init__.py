"""The page of the studio in a browser, made with NiceGUI: one document with a tab per task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nicegui import ui

from medfusion_monai.studio.pages.frame import show_frame
from medfusion_monai.studio.pages.visit import Visit

if TYPE_CHECKING:
    from fastapi import FastAPI

    from medfusion_monai.studio.service import Studio

RECONNECT_SECONDS = 15.0
"""For which a page may lose its connection, as on a busy machine, before it counts as closed."""
TITLE = "Medfusion Studio"
FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" fill="#155e75"/>'
    '<path d="M3.5 12V4.5L8 9l4.5-4.5V12" fill="none" stroke="#fff" stroke-width="1.8"/></svg>'
)


def add_pages(app: FastAPI, studio: Studio) -> None:
    """Add the page of a studio to an application; all its files are served by the application itself.

    Args:
        app: of the service, with its API and access control; it must be complete, as the page takes all other paths.
        studio: that the page uses.
    """

    @ui.page("/")
    def index() -> None:
        show_frame(Visit(studio))

    ui.run_with(
        app,
        title=TITLE,
        favicon=FAVICON,
        dark=None,  # as the system prefers
        language="en-US",
        tailwind=False,
        reconnect_timeout=RECONNECT_SECONDS,
        show_welcome_message=False,
    )
