"""The power of a copy guard: how many degraded copies of training images it finds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medfusion_monai.audit.guard import CopyGuard
from medfusion_monai.audit.statistics import false_alarms, share_figure

NOISE = 0.05
"""Standard deviation, in the range of an image."""
ROTATION = 3.0
"""Degrees."""
ZOOM = 1.05

_SEED = 0


def _noisy(images: Tensor) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(_SEED))
    return (images + NOISE * noise).clamp(0, 1)


def _blurred(images: Tensor) -> Tensor:
    """Gaussian blur with a standard deviation of one pixel."""
    weights = torch.exp(-0.5 * torch.arange(-3.0, 4.0).square())
    kernel = (weights[:, None] * weights / weights.sum().square()).expand(images.shape[1], 1, -1, -1)
    return F.conv2d(F.pad(images, (3, 3, 3, 3), mode="replicate"), kernel, groups=images.shape[1])


def _shifted(images: Tensor, pixels: int) -> Tensor:
    height, width = images.shape[-2:]
    return F.pad(images, (pixels, 0, pixels, 0), mode="replicate")[..., :height, :width]


def _turned(images: Tensor, degrees: float = 0.0, zoom: float = 1.0) -> Tensor:
    angle = math.radians(degrees)
    matrix = torch.tensor([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]]) / zoom
    grid = F.affine_grid(matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


DEGRADATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "noise 0.05": _noisy,
    "blur": _blurred,
    "shift 1": lambda images: _shifted(images, 1),
    "shift 2": lambda images: _shifted(images, 2),
    "rotation 3": lambda images: _turned(images, degrees=ROTATION),
    "zoom 1.05": lambda images: _turned(images, zoom=ZOOM),
    "mirrored": lambda images: images.flip(-1),
}
"""Functions of images (N, C, H, W) in [0, 1]; pixels beyond an edge repeat it."""


def measure_power(guard: CopyGuard, images: Tensor, held_out: Tensor) -> dict[str, Any]:
    """Measure the recall of a guard, at its threshold, on degraded copies of training images.

    Args:
        guard: of these training images, among others.
        images: training images (N, C, H, W) in [0, 1], at least one.
        held_out: scores of the held-out images.

    Returns:
        ``images``; ``recall``, the share found of each of ``DEGRADATIONS``; ``false_alarms``, see ``false_alarms``.
    """
    found = {name: int(guard.check(degrade(images)).copies.sum()) for name, degrade in DEGRADATIONS.items()}
    recall = {name: share_figure(number, len(images)).as_dict() for name, number in found.items()}
    return {"images": len(images), "recall": recall, "false_alarms": false_alarms(held_out).as_dict()}
