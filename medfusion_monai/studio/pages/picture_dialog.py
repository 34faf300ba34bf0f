"""A picture in full: how it was made, its downloads, and the training images next to it."""

from __future__ import annotations

from nicegui import ui

from medfusion_monai.studio import tasks
from medfusion_monai.studio.jobs import Job
from medfusion_monai.studio.pages.job_view import JobView
from medfusion_monai.studio.pages.saving import offered, save_one
from medfusion_monai.studio.pages.shown_image import REAL, picture_url, plain_url, show_image, tag_of
from medfusion_monai.studio.pages.text import text
from medfusion_monai.studio.pages.visit import Visit
from medfusion_monai.studio.picture import Picture

FACTS = {
    "class_name": "Class",
    "seed": "Image seed",
    "sampler": "Sampler",
    "num_inference_steps": "Steps",
    "guidance_scale": "Guidance",
}
"""Columns of the manifest that the dialog shows, and their titles."""


class PictureDialog:
    """A dialog for one generated picture at a time.

    Args:
        visit: that it belongs to.
    """

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        with ui.dialog().props('aria-label="Generated image"') as self.dialog, ui.card().classes("sheet"):
            self.body = ui.element("div").classes("sheet-body")

    def open(self, picture: Picture, number: int) -> None:
        """Show a picture."""
        self.body.clear()
        with self.body:
            with ui.element("div").classes("sheet-picture"):
                show_image(picture_url(picture), f"Generated image {number}, enlarged", tag_of(picture))
            with ui.element("div").classes("sheet-side"):
                self._show_facts(picture, number)
                self._show_actions(picture)
                self._show_nearest(picture)
        self.dialog.open()

    def _show_facts(self, picture: Picture, number: int) -> None:
        text("h2", f"Image {number}")
        with ui.element("dl"):
            for column, title in FACTS.items():
                if str(picture.row.get(column, "")):
                    text("dt", title)
                    text("dd", str(picture.row[column]))

    def _show_actions(self, picture: Picture) -> None:
        with ui.element("div").classes("actions"):
            ui.button("Edit this image", on_click=lambda: self._edit(picture)).props("unelevated no-caps")
            for name, title in offered(picture).items():
                ui.button(title, on_click=lambda name=name: save_one(picture, name)).props("outline no-caps")
            ui.button("Close", on_click=self.dialog.close).props("flat no-caps")

    def _edit(self, picture: Picture) -> None:
        self.dialog.close()
        self.visit.edit(picture)

    def _show_nearest(self, picture: Picture) -> None:
        if self.visit.studio.data is None:
            return
        found = ui.element("div").classes("trio")

        def submit() -> list[Job]:
            found.clear()
            return [tasks.nearest(self.visit.studio, picture.image[None])]

        def show() -> None:
            with found:
                for neighbour in jobs.jobs[0].value[0]:
                    words = f"{neighbour.class_name} · distance {neighbour.distance:.3f}"
                    show_image(plain_url(neighbour.image), "Training image", REAL, words)

        jobs = JobView(self.visit, lambda _: None, show)
        jobs.add_button("Nearest training images", submit).props("outline")
        found.move(target_index=-1)
