"""What all requests share: the model, the queue, the limits.

Studio(model, limits=Limits())
.model, .limits, .jobs, .weights_sha256, .sampler_defaults, .batch_size
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from medfusion_monai.diffusion.inferer import LatentDiffusionSampler
from medfusion_monai.model import Model
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.sampling.writer import sample_settings
from medfusion_monai.studio.jobs import JobQueue
from medfusion_monai.studio.limits import Limits

BATCH_SIZE = 16
"""Images at a time, as ``Model.sample`` and ``run inference`` take them: other numbers may tip a rounding."""


class Studio:
    """A model that jobs use one after the other.

    Args:
        model: loaded, from a file that still exists.
        limits: of requests.
    """

    def __init__(self, model: Model, limits: Limits | None = None) -> None:
        self.model, self.limits = model, limits or Limits()
        self.weights_sha256 = file_sha256(model.path)
        self.jobs = JobQueue(self.limits.waiting_jobs)

    @cached_property
    def sampler_defaults(self) -> dict[str, Any]:
        """Settings of the sampler that a request does not set."""
        return self.model.sampler.settings()

    def settings(self, sampler: LatentDiffusionSampler, batch_size: int) -> dict[str, str]:
        """Return the settings of a sample as in the manifest of ``run inference``."""
        settings = sample_settings(sampler, self.model.network, self.model.image_size, batch_size, "png")
        return self.with_weights(settings)

    def with_weights(self, settings: dict[str, Any]) -> dict[str, str]:
        """Return settings as text, with the checksum of the weights, as a manifest lists them."""
        return {**{name: str(value) for name, value in settings.items()}, "weights_sha256": self.weights_sha256}

    def close(self) -> None:
        """Cancel all jobs and wait for the one that runs."""
        self.jobs.close()
