"""Sampling as a job."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medfusion_monai.editing.edit_inputs import batches
from medfusion_monai.model import make_sampler
from medfusion_monai.sampling.plan import Label, sampling_plan
from medfusion_monai.studio.jobs import Job
from medfusion_monai.studio.service import BATCH_SIZE, Studio
from medfusion_monai.studio.tasks.steps import add_pictures, followed


def sample(
    studio: Studio,
    label: Label | Sequence[Label] | None,
    count: int = 4,
    seed: int = 0,
    *,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    batch_size: int = BATCH_SIZE,
) -> Job:
    """Sample images, the same as ``Model.sample`` returns for label, seed and batch size.

    Args:
        studio: with the model.
        label: number or name of a class, a list of them, or None for all.
        count: images per label.
        seed: of the set; image k of a label is the same however many others are requested.
        num_inference_steps: of the sampler; None for the model's.
        guidance_scale: likewise.
        batch_size: images at a time; with fewer, the first are ready sooner, and all of them later.

    Raises:
        ValueError: for an unknown class, or a value that is out of range or above the limits.
    """
    limits, model = studio.limits, studio.model
    limits.check(0, seed=seed)
    limits.check(count=count, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale)
    plan = sampling_plan(model.class_names, label, count, seed)
    limits.check(count=len(plan))
    sampler = make_sampler(model, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale)
    settings, parts = studio.settings(sampler, batch_size), list(batches(len(plan), batch_size))

    def work(job: Job) -> None:
        with followed(model, job, len(parts) * sampler.num_inference_steps):
            for at in parts:
                labels = torch.tensor([item["label"] for item in plan[at]], device=model.device)
                images = sampler(labels, model.network, seeds=[item["seed"] for item in plan[at]]).cpu()
                add_pictures(job, images, [{**item, **settings} for item in plan[at]])

    return studio.jobs.submit(f"sample {len(plan)} images", work)
