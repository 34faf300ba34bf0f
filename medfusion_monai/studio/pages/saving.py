"""Downloads of pictures: one in a format, or all as a ZIP with their manifest."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from nicegui import ui

from medfusion_monai.studio.downloads import encode, formats_of, name_of, zip_of
from medfusion_monai.studio.pages.fields import choice_field
from medfusion_monai.studio.picture import Picture

TITLES = {"png": "PNG", "png16": "PNG, 16 bits", "dicom": "DICOM", "nifti": "NIfTI"}
"""Formats that the page offers, where a picture may have them."""


def offered(picture: Picture) -> dict[str, str]:
    """Return titles of the formats that a picture may have."""
    possible = formats_of(picture)
    return {name: title for name, title in TITLES.items() if name in possible}


def save_one(picture: Picture, output_format: str) -> None:
    """Send the file of a picture to the browser."""
    ui.download.content(encode(picture, output_format), name_of(picture, output_format))


class SaveAll:
    """A format and a button for all pictures of one kind; hidden while there are none.

    Args:
        name: of the ZIP file.
    """

    def __init__(self, name: str) -> None:
        self.name, self.pictures = name, list[Picture]()
        with ui.element("div").classes("saving") as self.box:
            self.format = choice_field("Format", {"png": TITLES["png"]}, "png")
            ui.button("Download ZIP with manifest", on_click=self._save).props("outline no-caps")
        self.box.set_visibility(False)

    def offer(self, pictures: Sequence[Picture]) -> None:
        """Offer these pictures."""
        if pictures and not self.pictures:
            self.format.set_options(offered(pictures[0]))
        self.pictures = list(pictures)
        self.box.set_visibility(bool(pictures))

    async def _save(self) -> None:
        content = await asyncio.to_thread(zip_of, self.pictures, self.format.value)
        ui.download.content(content, f"{self.name}.zip")
