"""Brings images to one size. Without MONAI, which `medfusion prepare` would only load for its contact sheet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def resize_center_crop(image: torch.Tensor, size: Sequence[int], mode: str = "crop") -> torch.Tensor:
    """Resize with antialiasing, keeping the proportions, then crop or pad the centre to the target size.

    Args:
        image: float32 (C, H, W) in [0, 1].
        size: target (H, W).
        mode: ``crop`` fills the target and crops the rest; ``pad`` keeps the whole image and adds zeros.

    Returns:
        Image (C, *size) in [0, 1].
    """
    resized = resized_sides(image.shape[1:], size, mode)
    if resized != list(image.shape[1:]):
        image = F.interpolate(image[None], size=resized, mode="bilinear", antialias=True)[0]
    return _fit(image, size, mode).clamp(0, 1)


def resized_sides(shape: Sequence[int], size: Sequence[int], mode: str) -> list[int]:
    """Return height and width that an image of (H, W) is resized to, before the target is cut out or padded."""
    ratios = [target / side for target, side in zip(size, shape, strict=True)]
    scale = max(ratios) if mode == "crop" else min(ratios)
    # One side matches exactly; rounding must not move the other past the target.
    limit = max if mode == "crop" else min
    return [limit(target, max(1, round(side * scale))) for target, side in zip(size, shape, strict=True)]


def _fit(image: torch.Tensor, size: Sequence[int], mode: str) -> torch.Tensor:
    (height, width), (rows, columns) = size, image.shape[1:]
    if mode == "crop":
        top, left = (rows - height) // 2, (columns - width) // 2
        return image[:, top : top + height, left : left + width]
    top, left = (height - rows) // 2, (width - columns) // 2
    return F.pad(image, (left, width - columns - left, top, height - rows - top))
