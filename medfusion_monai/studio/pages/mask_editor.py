"""Drawing a mask on an image, by pointer or by numbers."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
from nicegui import events, ui
from PIL import Image
from torch import Tensor

from medfusion_monai.studio.pages.fields import SliderField, number_field, value_of
from medfusion_monai.studio.pages.shown_image import data_url

TOOLS = {"rectangle": "Rectangle", "brush": "Brush", "eraser": "Eraser"}


class MaskCanvas(ui.element, component="mask_canvas.js"):
    """An image on which a mask is drawn in the browser.

    Args:
        size: height and width of the image.
    """

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.props["height"], self.props["width"] = size
        self.props["tool"], self.props["brush"], self.props["src"] = "rectangle", max(size) // 8, ""
        self.mask = torch.zeros(1, 1, *size, dtype=torch.bool)
        self.on("mask", self._receive)

    def draw_rectangle(self, left: int, top: int, width: int, height: int) -> None:
        """Add a rectangle, in pixels of the image."""
        self.run_method("rectangle", left, top, width, height)

    def draw(self, mask: Tensor) -> None:
        """Show a mask (1, 1, H, W) in place of the drawn one."""
        self.mask = mask
        alpha = np.zeros((*mask.shape[-2:], 4), np.uint8)
        alpha[..., 3] = mask[0, 0].numpy() * 255
        file = io.BytesIO()
        Image.fromarray(alpha).save(file, "PNG")
        self.run_method("draw", data_url(file.getvalue()))

    def erase(self) -> None:
        """Empty the mask."""
        self.mask = torch.zeros_like(self.mask)
        self.run_method("erase")

    def _receive(self, event: events.GenericEventArguments) -> None:
        height, width = self.mask.shape[-2:]
        self.mask = decoded(event.args, (height, width))


def decoded(url: str, size: tuple[int, int]) -> Tensor:
    """Return the mask (1, 1, H, W) of a PNG in a data URL: true where it is more opaque than not.

    Raises:
        ValueError: for another size.
    """
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])), formats=["PNG"]) as picture:
        if picture.size != size[::-1]:
            raise ValueError(f"the mask must be {size[1]} x {size[0]} pixels, received {picture.size}")
        alpha = np.asarray(picture.convert("RGBA"))[..., 3]
    return torch.from_numpy(alpha > 127)[None, None]


class MaskEditor:
    """A canvas with tools.

    Args:
        size: height and width of the image.
    """

    def __init__(self, size: Sequence[int]) -> None:
        height, width = size
        with ui.element("div").classes("mask"):
            self.canvas = MaskCanvas(size)
            with ui.element("div").classes("mask-tools"):
                tool = ui.radio(TOOLS, value="rectangle", on_change=lambda event: self._use(event.value))
                tool.props('inline dense aria-label="Tool"')
                SliderField("Brush width", max(size) // 8, 1, max(size) // 2, 1, self._set_brush)
                ui.label("Or by numbers, in pixels").classes("hint")
                with ui.element("div").classes("pair"):
                    self.numbers = [
                        number_field("Left", width // 4, 0, width - 1),
                        number_field("Top", height // 4, 0, height - 1),
                        number_field("Width", width // 4, 1, width),
                        number_field("Height", height // 4, 1, height),
                    ]
                with ui.element("div").classes("actions"):
                    ui.button("Add rectangle", on_click=self._add).props("outline no-caps")
                    ui.button("Erase all", on_click=self.canvas.erase).props("flat no-caps")

    def show(self, url: str) -> None:
        """Show an image below an empty mask."""
        self.canvas.props["src"] = url
        self.canvas.erase()

    def _use(self, tool: str) -> None:
        self.canvas.props["tool"] = tool

    def _set_brush(self, event: events.ValueChangeEventArguments) -> None:
        self.canvas.props["brush"] = event.value

    def _add(self) -> None:
        try:
            left, top, width, height = (value_of(number) for number in self.numbers)
        except ValueError as error:
            ui.notify(str(error), type="negative")
            return
        self.canvas.draw_rectangle(left, top, width, height)
