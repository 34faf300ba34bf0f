"""Interpolation as a job."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from medfusion_monai.data.reading.images import pixel_digest
from medfusion_monai.editing import interpolation
from medfusion_monai.editing.edit_inputs import Labels, checked_images, checked_labels
from medfusion_monai.editing.edit_plan import numbered_files
from medfusion_monai.editing.edit_run import Edit
from medfusion_monai.model import make_sampler
from medfusion_monai.networks.unet import NO_LABEL
from medfusion_monai.studio.jobs import Job
from medfusion_monai.studio.service import BATCH_SIZE, Studio
from medfusion_monai.studio.tasks.steps import INVERSION_CALLS, add_pictures, classify_calls, followed
from medfusion_monai.weights.model_info import require_denoiser

Rows = list[dict[str, Any]]


def interpolate(
    studio: Studio,
    start: Tensor | int,
    end: Tensor | int,
    *,
    label: Labels | None = None,
    frames: int = 8,
    source: str = "",
    num_inference_steps: int | None = None,
) -> Job:
    """Make frames between two images, or between the images of two seeds.

    Frames between seeds show no patient; those between images count as edited.

    Args:
        studio: with the model.
        start: an image (1, C, H, W) in [0, 1], or a seed.
        end: another one of the same kind.
        label: a class or two; None, for images only, for those that are found.
        frames: number of images, both ends included; at least 2.
        source: names of the images, for the manifest.
        num_inference_steps: of the sampler; None for the model's.

    Raises:
        ValueError: for ends of different kinds, images of another form, seeds without a label, or a value that is out
            of range or above the limits.
    """
    model, limits = studio.model, studio.limits
    require_denoiser(model.path, model.info)
    limits.check(num_inference_steps=num_inference_steps)
    limits.check(2, frames=frames)
    labels = None if label is None else checked_labels(model, label, 2).tolist()
    ends: list[Any] = [start, end]
    steps: dict[str, Any] = {} if num_inference_steps is None else {"num_inference_steps": num_inference_steps}
    if isinstance(start, Tensor) and isinstance(end, Tensor):
        ends = [checked_images(model, image, "image")[0] for image in (start, end)]
        rows = _image_rows(studio, ends, labels, frames, source, steps)
        calls = _image_calls(studio, labels, frames, steps)
    elif isinstance(start, Tensor) or isinstance(end, Tensor):
        raise ValueError("start and end must be two images or two seeds, received one of each")
    else:
        for seed in (start, end):
            limits.check(0, seed=seed)
        rows = _seed_rows(studio, (start, end), labels, frames, steps)
        calls = _parts(frames) * make_sampler(model, **steps).num_inference_steps * len(set(labels or []))

    def work(job: Job) -> None:
        with followed(model, job, calls):
            images = interpolation.interpolate(model, ends[0], ends[1], frames, labels, BATCH_SIZE, **steps)
            add_pictures(job, images, rows)

    return studio.jobs.submit(f"interpolate {frames} frames", work)


def _image_rows(
    studio: Studio, ends: list[Tensor], labels: list[int] | None, frames: int, source: str, steps: dict[str, Any]
) -> Rows:
    settings = Edit("interpolate", studio.model, number=frames, **steps).settings(BATCH_SIZE, "png")
    digests = ", ".join(pixel_digest(image.cpu().numpy()) for image in ends)
    own = {"label": NO_LABEL, "class_name": "", "seed": 0, "source": source, "source_pixels": digests}
    own["own_label"], own["other_label"] = labels or (NO_LABEL, NO_LABEL)
    return [{**own, **item, **studio.with_weights(settings)} for item in numbered_files("frame", frames, ".png")]


def _seed_rows(
    studio: Studio, seeds: tuple[int, int], labels: list[int] | None, frames: int, steps: dict[str, Any]
) -> Rows:
    if labels is None:
        names = ", ".join(studio.model.class_names)
        raise ValueError(f"label must be given between two seeds: one of {names}, or two")
    settings = studio.settings(make_sampler(studio.model, **steps, eta=0.0), BATCH_SIZE)
    first, last = (studio.model.class_names[label] for label in labels)
    own = {"label": labels[0], "class_name": first, "seed": seeds[0]}
    other = {"end_label": labels[1], "end_class_name": last, "end_seed": seeds[1], "frames": frames}
    return [
        {"file": item["file"], **own, **other, "frame": item["index"], **settings}
        for item in numbered_files("frame", frames, ".png")
    ]


def _image_calls(studio: Studio, labels: list[int] | None, frames: int, steps: dict[str, Any]) -> float:
    levels = make_sampler(studio.model, **steps).num_inference_steps - 1
    finding = classify_calls(studio.model) if labels is None else 0
    classes = 2 if labels is None else len(set(labels))
    return finding + levels * (INVERSION_CALLS + _parts(frames) * classes)


def _parts(frames: int) -> int:
    return math.ceil(frames / BATCH_SIZE)
