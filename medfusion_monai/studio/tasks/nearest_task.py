"""Training images next to generated ones, as a job."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from medfusion_monai.audit.fingerprints import Prints, fingerprint
from medfusion_monai.audit.guard import Verdict
from medfusion_monai.editing.edit_inputs import checked_images
from medfusion_monai.studio.jobs import Job
from medfusion_monai.studio.real_data import RealData
from medfusion_monai.studio.service import Studio

NOBODY = -1
"""Number of the patient of a generated image."""


class Neighbour(NamedTuple):
    """A training image close to another image.

    Attributes:
        image: (C, H, W) in [0, 1]; it shows a patient.
        class_name: its class.
        distance: by pixels and structure, relative to the distances of held-out images: about 1 for an image that is
            no copy, near 0 for a copy.
    """

    image: Tensor
    class_name: str
    distance: float


def nearest(studio: Studio, images: Tensor, *, number: int = 3) -> Job:
    """Find the training images closest to images (B, C, H, W), by the measures of ``medfusion audit``.

    The first job reads all training and held-out images of the studio's data.

    Returns:
        A job whose value has, per image, a list of ``Neighbour``, the closest first.

    Raises:
        ValueError: without data, for images of another form, or too many.
    """
    data = studio.data
    if data is None:
        raise ValueError("nearest training images need the training images: start the studio with --data DIR")
    queries = checked_images(studio.model, images)
    studio.limits.check(count=len(queries))
    studio.limits.check(count=number)

    def work(job: Job) -> list[list[Neighbour]]:
        job.expect(data.matcher_steps + len(queries))
        matcher, found = data.matcher(job.step), []
        for image in queries:
            job.step()
            prints = Prints(fingerprint(image[None].cpu()), None, torch.tensor([NOBODY]))
            scores, places = matcher.closest(prints, number)
            found.append(_neighbours(data, scores[0], places[0]))
        return found

    return studio.jobs.submit("nearest training images", work)


def check_copies(studio: Studio, images: Tensor) -> Job:
    """Ask the copy guard of the model's audit about images (B, C, H, W).

    Returns:
        A job whose value is the guard's ``Verdict``: ``copies`` and ``scores``, one per image.

    Raises:
        ValueError: without a guard, for images of another form, or too many.
    """
    guard = None if studio.audit is None else studio.audit.guard
    if guard is None:
        raise ValueError(
            "there is no copy guard beside the weights: run medfusion audit, and name its folder by --audit"
        )
    queries = checked_images(studio.model, images)
    studio.limits.check(count=len(queries))

    def work(job: Job) -> Verdict:
        job.expect(len(queries))
        parts = []
        for image in queries:
            job.step()
            parts.append(guard.check(image[None]))
        return Verdict(*(torch.cat(column) for column in zip(*parts, strict=True)))

    return studio.jobs.submit("copies of training images", work)


def _neighbours(data: RealData, scores: Tensor, places: Tensor) -> list[Neighbour]:
    items, names = data.training.items, data.training.class_names
    return [
        Neighbour(data.training_image(place), names[items[place]["label"]], score)
        for score, place in zip(scores.tolist(), places.tolist(), strict=True)
        if place >= 0
    ]
