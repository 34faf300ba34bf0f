"""What an edit changed, in colours: blue where darker, red where brighter; and anomaly maps."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

CHANGE, UNUSUAL = "RdBu_r", "inferno"
"""Colour maps of signed changes and of anomaly maps, as matplotlib names them; both can be read by the colour-blind."""
LEAST_SCALE = 0.05
"""Smallest end of a scale, of 1: below it, colours would show rounding and noise."""


def signed_change(before: Tensor, after: Tensor) -> Tensor:
    """Return by how much each pixel became brighter, (H, W) in [-1, 1], from images (C, H, W) in [0, 1].

    Raises:
        ValueError: for images of different shapes.
    """
    if before.shape != after.shape:
        raise ValueError(f"before and after must have one shape, received {tuple(before.shape)}, {tuple(after.shape)}")
    return (after.float() - before.float()).mean(0)


def scale_of(values: Tensor) -> float:
    """Return the end of the scale that holds all values (H, W): a multiple of 0.05, at least 0.05."""
    largest = float(values.abs().max())
    return max(LEAST_SCALE, round(np.ceil(largest / LEAST_SCALE - 1e-6) * LEAST_SCALE, 2))


def coloured(values: Tensor, scale: float, colours: str = CHANGE) -> Image.Image:
    """Return a picture of values (H, W), those of a signed change from -scale to scale, others from 0 to scale."""
    array = values.cpu().numpy() / scale
    place = array / 2 + 0.5 if colours == CHANGE else array
    return Image.fromarray(colormaps[colours](place.clip(0.0, 1.0), bytes=True)[..., :3])


def change_picture(before: Tensor, after: Tensor) -> tuple[Image.Image, float]:
    """Return the picture of a change from one image (C, H, W) in [0, 1] to another, and the end of its scale."""
    change = signed_change(before, after)
    scale = scale_of(change)
    return coloured(change, scale), scale


def map_picture(anomaly: Tensor) -> tuple[Image.Image, float]:
    """Return the picture of an anomaly map (1, H, W) in [0, 1], and the end of its scale."""
    scale = scale_of(anomaly[0])
    return coloured(anomaly[0], scale, UNUSUAL), scale


def legend_stops(colours: str, count: int = 9) -> list[str]:
    """Return evenly spaced colours of a map, from its lower end to its upper, as ``#rrggbb``."""
    values = colormaps[colours](np.linspace(0.0, 1.0, count), bytes=True)
    return ["#{:02x}{:02x}{:02x}".format(*value[:3]) for value in values]
