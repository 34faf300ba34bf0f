"""How a job follows the networks: each call of the UNet is a step, before which it may be cancelled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from medfusion_monai.model import Model
from medfusion_monai.sampling.writer import refuse_non_finite
from medfusion_monai.studio.jobs import Job
from medfusion_monai.studio.picture import Picture

INVERSION_CALLS = 3.2
"""Calls of the UNet per step of an inversion, as measured (docs/editing.md), to estimate the time left."""
CLASSIFY_LEVELS = 32
"""Noise levels at which ``classify`` calls the UNet, once per class."""


@contextmanager
def followed(model: Model, job: Job, calls: float) -> Iterator[None]:
    """Count each call of the model's UNet as a step of a job that takes about ``calls`` of them."""
    job.expect(round(calls))
    hook = model.network.unet.register_forward_pre_hook(job.step)
    try:
        yield
    finally:
        hook.remove()


def classify_calls(model: Model) -> int:
    """Return how often ``classify`` calls the UNet for a batch of images."""
    return CLASSIFY_LEVELS * len(model.class_names)


def add_pictures(job: Job, images: Tensor, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add images (B, C, H, W) with their lines of the manifest to a job.

    Raises:
        ValueError: if one has values that are not finite.
    """
    refuse_non_finite(images, rows)
    for image, row in zip(images, rows, strict=True):
        job.add(Picture(image, dict(row)))
