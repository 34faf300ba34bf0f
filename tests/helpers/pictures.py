"""Images for tests of reading and preparing."""

import numpy as np


def picture(value, side=32):
    """Give 8-bit pixels of one value, or colour, with a white quarter: no block of a JPEG mixes the two."""
    pixels = np.full((side, side, *np.shape(value)), value, np.uint8)
    pixels[: side // 2, : side // 2] = 255
    return pixels
