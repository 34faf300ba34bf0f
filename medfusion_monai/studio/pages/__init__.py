"""The pages of the studio, for browsers."""

from __future__ import annotations

from fastapi import FastAPI
from nicegui import ui

from medfusion_monai.studio.service import Studio


def add_pages(app: FastAPI, studio: Studio) -> None:
    """Add the pages to a service, behind its other routes."""

    @ui.page("/", title="Medfusion studio")
    def start() -> None:
        ui.label(f"Classes: {', '.join(studio.model.class_names)}")

    ui.run_with(app, title="Medfusion studio", show_welcome_message=False)
