"""Classification as a job."""

from __future__ import annotations

from torch import Tensor

from medfusion_monai.editing import diffusion_classifier
from medfusion_monai.editing.diffusion_classifier import Classification
from medfusion_monai.editing.edit_inputs import checked_images
from medfusion_monai.studio.jobs import Job
from medfusion_monai.studio.service import Studio
from medfusion_monai.studio.tasks.steps import CLASSIFY_LEVELS, classify_calls, followed


def classify(studio: Studio, image: Tensor, *, seed: int = 0) -> Job:
    """Find the class of an image (1, C, H, W) in [0, 1]; the job's value is a ``Classification`` of one image.

    Raises:
        ValueError: for an image of another form, or a seed out of range.
    """
    model = studio.model
    studio.limits.check(0, seed=seed)
    images = checked_images(model, image, "image")[:1]

    def work(job: Job) -> Classification:
        with followed(model, job, classify_calls(model)):
            return diffusion_classifier.classify(model, images, num_levels=CLASSIFY_LEVELS, seed=seed)

    return studio.jobs.submit("classify", work)
