"""What all requests share: the model, the queue, the limits.

Studio(model, limits=Limits())
.model, .limits, .jobs, .sampler_defaults, .batch_size
"""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import Any

from medfusion_monai.diffusion.inferer import LatentDiffusionSampler
from medfusion_monai.model import Model
from medfusion_monai.sampling.writer import sample_settings
from medfusion_monai.studio.audits import ModelAudit, find_audit
from medfusion_monai.studio.jobs import JobQueue
from medfusion_monai.studio.limits import Limits
from medfusion_monai.studio.real_data import RealData
from medfusion_monai.weights.model_info import require_latents

logger = logging.getLogger(__name__)

BATCH_SIZE = 16
"""Images at a time, as ``Model.sample`` and ``run inference`` take them: other numbers may tip a rounding."""


class Studio:
    """A model that jobs use one after the other.

    Args:
        model: loaded, from a file that still exists.
        limits: of requests.
        dataset_dir: folder of a prepared data set, whose real images are shown; None for none.
        audit_dir: folder of an audit of the weights; None for one beside them, if it is there and theirs.

    Raises:
        ValueError: for a data set or an audit that cannot be read or is of other classes or weights, and for
            the weights of a GAN.
    """

    def __init__(
        self,
        model: Model,
        limits: Limits | None = None,
        dataset_dir: str | Path | None = None,
        audit_dir: str | Path | None = None,
    ) -> None:
        require_latents(model.path, model.info)
        self.model, self.limits = model, limits or Limits()
        self.data = None if dataset_dir is None else RealData(model, dataset_dir)
        self.audit = self._found_audit() if audit_dir is None else ModelAudit(model, audit_dir)
        self.jobs = JobQueue(self.limits.waiting_jobs)

    def _found_audit(self) -> ModelAudit | None:
        folder = find_audit(self.model.path)
        try:
            return None if folder is None else ModelAudit(self.model, folder)
        except ValueError as error:  # as after another training
            logger.warning("%s. The studio shows no audit", error)
            return None

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
        return {**{name: str(value) for name, value in settings.items()}, "weights_sha256": self.model.weights_sha256}

    def close(self) -> None:
        """Cancel all jobs and wait for the one that runs."""
        self.jobs.close()
