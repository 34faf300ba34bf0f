"""The choice of an image: a file of the user's, or one that the page has generated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nicegui import events, ui
from torch import Tensor

from medfusion_monai.sampling.image_formats import png_bytes
from medfusion_monai.studio.pages.shown_image import GENERATED, REAL, picture_url, plain_url, show_image
from medfusion_monai.studio.pages.upload_button import UploadButton
from medfusion_monai.studio.pages.visit import Visit
from medfusion_monai.studio.picture import Picture
from medfusion_monai.studio.uploads import file_name, read_upload

UPLOADED = "Uploaded"
ACCEPTED = ".png,.jpg,.jpeg,.tif,.tiff,.webp,.dcm,.nii,.gz"


class ImageSource:
    """Shows the chosen image, and how to choose another. The image lives as long as the page.

    Args:
        visit: that it belongs to.
        title: of the image.
        on_change: called when an image was chosen.
    """

    def __init__(self, visit: Visit, title: str, on_change: Callable[[], None] = lambda: None) -> None:
        self.visit, self.title, self.on_change = visit, title, on_change
        self.image: Tensor | None = None
        self.name, self.content, self.label = "", b"", -1
        self.url, self.tag = "", REAL
        with ui.element("div").classes("source"):
            with ui.element("div").classes("source-buttons"):
                UploadButton(visit, f"Upload {title.lower()}", ACCEPTED, self._upload, self._explain)
                with ui.button("Use generated").props("outline no-caps") as button:
                    self.menu = ui.menu()
                button.on("click", self._list_generated)
            self.problem = ui.label().classes("problem").props('role="alert"')
            self._explain("")
            self.shown = ui.element("div").classes("source-image")

    def take(self, picture: Picture) -> None:
        """Choose a generated picture."""
        self.label, self.tag = int(picture.row["label"]), GENERATED
        self.url, self.content = picture_url(picture), png_bytes(picture.image.numpy(), picture.row)
        self._show(picture.image[None], picture.row["file"], picture.row["class_name"])

    async def _upload(self, event: events.UploadEventArguments) -> None:
        content = await event.file.read()
        try:
            image = await asyncio.to_thread(read_upload, self.visit.studio, content, event.file.name)
        except ValueError as error:
            self._explain(str(error))
            return
        self.label, self.tag, self.content, self.url = -1, UPLOADED, content, plain_url(image[0])
        name = file_name(event.file.name)
        self._show(image, name, name)

    def _show(self, image: Tensor, name: str, caption: str) -> None:
        self.image, self.name = image, name
        self._explain("")
        self.shown.clear()
        with self.shown:
            show_image(self.url, f"{self.title}: {caption}", self.tag, caption)
        self.on_change()

    def _list_generated(self) -> None:
        self.menu.clear()
        with self.menu:
            if not self.visit.generated:
                ui.menu_item("Nothing is generated yet: use the tab Generate").props("disable")
            for number, picture in enumerate(self.visit.generated, 1):
                words = f"{number} · {picture.row['class_name']}"
                ui.menu_item(words, on_click=lambda picture=picture: self.take(picture))

    def _explain(self, problem: str) -> None:
        self.problem.set_text(problem)
        self.problem.set_visibility(bool(problem))
