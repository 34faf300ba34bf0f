"""One limit on the pixels of an image for all formats, compared with the header before decoding."""

from __future__ import annotations

from pathlib import Path

from medfusion_monai.data.preparing.splits import DataError

MOST_PIXELS = 2**26
"""8192 x 8192; float32 RGB of this size takes 768 MiB."""


def refuse_large(path: Path, height: int, width: int) -> None:
    """Raise if an image has too many pixels to be decoded in memory.

    Raises:
        DataError: with its size and the limit.
    """
    if height * width > MOST_PIXELS:
        raise DataError(
            f"{path}: has {height}x{width} pixels, more than {MOST_PIXELS / 1e6:.0f} million. Reduce its size, or cut "
            "it into tiles."
        )
