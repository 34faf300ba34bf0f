"""Pictures of a report: rows of images with captions."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from medfusion_monai.training.handlers.image_grid import grid_of_rows, to_picture

COLUMNS = 8  # images per row
ENLARGED_TO = 128  # pixels; smaller images are enlarged by whole factors to about this
REDUCED_TO = 192  # pixels; larger images are reduced to this
PADDING = 2


def spread(count: int, number: int = COLUMNS) -> list[int]:
    """Choose evenly spaced indices of a list, including its first and last."""
    return np.linspace(0, count - 1, min(number, count)).round().astype(int).tolist()


def picture_of_rows(rows: Mapping[str, Tensor] | Sequence[tuple[str, Tensor]]) -> Image.Image:
    """Stack rows of images, each (N, C, H, W) in [0, 1], each with its caption to the left."""
    pairs = list(rows.items()) if isinstance(rows, Mapping) else list(rows)
    reduced = [_reduced(images) for _, images in pairs]
    return caption_rows(grid_of_rows(reduced, PADDING), [caption for caption, _ in pairs], reduced[0].shape[-2:])


def caption_rows(grid: Tensor, captions: Sequence[str], size: Sequence[int]) -> Image.Image:
    """Put a caption to the left of each row of a grid (3, H, W) of images of the given size."""
    scale = max(1, ENLARGED_TO // size[0])
    picture = to_picture(grid)
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    font, captions = ImageFont.load_default(16), [drawable(caption) for caption in captions]
    margin = max(210, *(16 + round(font.getlength(caption)) for caption in captions))
    canvas = Image.new("RGB", (picture.width + margin, picture.height), "white")
    canvas.paste(picture, (margin, 0))
    draw = ImageDraw.Draw(canvas)
    for row, caption in enumerate(captions):
        middle = scale * (PADDING + (row + 0.5) * (size[0] + PADDING))
        draw.text((8, middle), caption, fill="black", font=font, anchor="lm")
    return canvas


def drawable(text: str) -> str:
    """Return a text in characters of Pillow's font: without accents, and with question marks for other scripts."""
    plain = unicodedata.normalize("NFKD", text.replace("ß", "ss"))
    return "".join(letter for letter in plain if not unicodedata.combining(letter)).encode("ascii", "replace").decode()


def _reduced(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    factor = min(1.0, REDUCED_TO / max(height, width))
    size = [max(1, round(height * factor)), max(1, round(width * factor))]
    return images if factor == 1.0 else F.interpolate(images, size=size, mode="bilinear", antialias=True)
