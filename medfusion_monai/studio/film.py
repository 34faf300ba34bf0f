"""Frames as an animated PNG, which every browser plays."""

from __future__ import annotations

import io
from collections.abc import Sequence

from torch import Tensor

from medfusion_monai.runtime.values import check_counts
from medfusion_monai.sampling.dicom_format import Note
from medfusion_monai.sampling.image_formats import png_pixels, png_text


def film_bytes(frames: Sequence[Tensor], note: Note, milliseconds: int = 120) -> bytes:
    """Encode frames, each (C, H, W) in [0, 1], as a film that runs forth and back without end.

    Args:
        frames: at least two, gray or RGB.
        note: stored in the file, which it marks as generated or edited, as that of ``png_bytes``.
        milliseconds: that each frame is shown; the first and the last one three times as long.

    Raises:
        ValueError: for fewer than two frames or a time below 1.
    """
    check_counts(2, frames=len(frames))
    check_counts(milliseconds=milliseconds)
    forth = [png_pixels(frame.cpu().numpy()) for frame in frames]
    pictures = [*forth, *forth[-2:0:-1]]
    times = [milliseconds * (3 if at in (0, len(forth) - 1) else 1) for at in range(len(pictures))]
    file = io.BytesIO()
    first, *others = pictures
    first.save(file, "PNG", save_all=True, append_images=others, duration=times, loop=0, pnginfo=png_text(note))
    return file.getvalue()
