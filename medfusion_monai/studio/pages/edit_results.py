"""What an edit made: before, after and difference, a map, or probabilities."""

from __future__ import annotations

from collections.abc import Sequence

from nicegui import ui

from medfusion_monai.editing.diffusion_classifier import Classification
from medfusion_monai.studio.difference import CHANGE, UNUSUAL, change_picture, map_picture
from medfusion_monai.studio.pages.image_source import ImageSource
from medfusion_monai.studio.pages.saving import SaveAll
from medfusion_monai.studio.pages.shown_image import EDITED, picture_url, plain_url, show_image, show_legend
from medfusion_monai.studio.pages.text import text
from medfusion_monai.studio.pages.visit import Visit
from medfusion_monai.studio.picture import Picture


class EditResults:
    """Rows of images of one edit.

    Args:
        visit: that it belongs to.
    """

    def __init__(self, visit: Visit) -> None:
        self.visit, self.edit = visit, ""
        self.source: ImageSource | None = None
        self.warning = ui.label(
            "An edited image still shows its patient: it is as confidential as the original."
        ).classes("note")
        self.saving = SaveAll("edited")
        self.rows = ui.element("div").classes("rows")
        self.clear()

    def clear(self) -> None:
        """Show nothing."""
        self._count = 0
        self.saving.offer([])
        self.rows.clear()
        with self.rows:
            ui.label("Before, after and difference appear here.").classes("empty")

    def begin(self, edit: str, source: ImageSource) -> None:
        """Make room for the results of an edit of an image."""
        self.clear()
        self.rows.clear()
        self.edit, self.source = edit, source

    def show(self, pictures: Sequence[Picture]) -> None:
        """Add the pictures that are new."""
        with self.rows:
            for picture in pictures[self._count :]:
                self._show_one(picture)
        self._count = len(pictures)
        self.saving.offer(pictures)

    def _show_one(self, picture: Picture) -> None:
        source = self.source
        if source is None or source.image is None:
            return
        with ui.element("div").classes("trio"):
            show_image(source.url, "Before the edit", source.tag, "before")
            if self.edit == "anomaly_map":
                drawn, scale = map_picture(picture.image)
                with ui.element("div"):
                    show_image(plain_url(drawn), f"Anomaly map, {100 * scale:.0f}% at its brightest", EDITED, "map")
                    show_legend(UNUSUAL, scale)
                    ui.label(f"Score {float(picture.image.max()):.3f}, the largest value").classes("hint")
                return
            show_image(picture_url(picture), "After the edit", EDITED, "after")
            drawn, scale = change_picture(source.image[0], picture.image)
            with ui.element("div"):
                show_image(plain_url(drawn), "Difference: red is brighter, blue darker", "", "difference")
                show_legend(CHANGE, scale)

    def show_classes(self, found: Classification) -> None:
        """Show the probabilities of the classes."""
        with self.rows, ui.element("table").classes("classes"):
            with ui.element("tr"):
                for title in ("Class", "Probability", ""):
                    text("th", title)
            for name, share in zip(self.visit.class_names, found.probabilities[0].tolist(), strict=True):
                with ui.element("tr"):
                    text("td", name)
                    text("td", f"{100 * share:.1f}%")
                    with ui.element("td"):
                        ui.element("div").classes("bar").style(f"width:{max(1.0, 100 * share):.1f}%")
        if not found.is_calibrated:
            with self.rows:
                ui.label("Not calibrated: the probabilities are too close to 0 and 1.").classes("hint")
