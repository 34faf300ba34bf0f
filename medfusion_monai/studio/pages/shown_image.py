"""Images on a page: what they show is always written beside them."""

from __future__ import annotations

import base64
import io

from nicegui import ui
from PIL import Image
from torch import Tensor

from medfusion_monai.sampling.image_formats import png_bytes, png_pixels
from medfusion_monai.studio.difference import CHANGE, legend_stops
from medfusion_monai.studio.picture import Picture

GENERATED, EDITED, REAL = "Generated", "Edited", "Real"


def data_url(content: bytes) -> str:
    """Return a PNG as a URL that contains it, so that no file has to be kept for the browser to fetch."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def picture_url(picture: Picture) -> str:
    """Return the URL of a generated or edited picture; its PNG says what it is, also after it was saved."""
    return data_url(png_bytes(picture.image.numpy(), picture.row))


def plain_url(image: Tensor | Image.Image) -> str:
    """Return the URL of an image (C, H, W) in [0, 1], or of a drawn picture, without any mark."""
    drawn = image if isinstance(image, Image.Image) else png_pixels(image.cpu().numpy())
    file = io.BytesIO()
    drawn.save(file, "PNG")
    return data_url(file.getvalue())


def tag_of(picture: Picture) -> str:
    """Return what a picture has to be marked as."""
    return EDITED if picture.is_edited else GENERATED


def show_image(url: str, alt: str, tag: str = "", caption: str = "") -> ui.element:
    """Show an image with a mark and a caption below, and return the figure.

    Args:
        url: of ``picture_url`` or ``plain_url``.
        alt: describes it to those who do not see it.
        tag: ``GENERATED``, ``EDITED`` or ``REAL``; empty for drawings.
        caption: what else to know.
    """
    with ui.element("figure").classes(f"shot {tag.lower()}") as figure:
        image = ui.image(url).props("tag=img")
        image.props["alt"] = alt
        with ui.element("figcaption"):
            if tag:
                ui.label(tag).classes("tag")
            if caption:
                ui.label(caption)
    return figure


def show_legend(colours: str, scale: float) -> None:
    """Show what the colours of ``difference`` mean, in percent of the full brightness."""
    end = f"{100 * scale:.0f}%"
    with ui.element("div").classes("legend"):
        ui.element("div").classes("ramp").style(
            f"background:linear-gradient(to right,{','.join(legend_stops(colours))})"
        )
        with ui.element("div").classes("ends"):
            if colours == CHANGE:
                for text in (f"darker by {end}", "no change", f"brighter by {end}"):
                    ui.label(text)
            else:
                ui.label("no change")
                ui.label(f"changed by {end}")
