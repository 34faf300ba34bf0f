"""What one request to the studio may ask for, so that none occupies the machine or its memory for long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medfusion_monai.runtime.values import check_counts, check_numbers

FRACTIONS = ("guidance_scale", "smoothing")
"""Values that need not be whole numbers."""


@dataclass(frozen=True)
class Limits:
    """Largest values of requests.

    Attributes:
        count: images of a job.
        frames: of an interpolation.
        num_inference_steps: of a sampler.
        guidance_scale: of a sampler or an edit.
        repeats: of each noise level in inpainting.
        smoothing: of an anomaly map, in pixels.
        seed: of a job; 2**53 - 1 is the largest whole number that JSON and browsers represent exactly.
        upload_bytes: of an uploaded file.
        waiting_jobs: jobs that wait while another runs.
    """

    count: int = 64
    frames: int = 64
    num_inference_steps: int = 250
    guidance_scale: float = 20.0
    repeats: int = 10
    smoothing: float = 32.0
    seed: int = 2**53 - 1
    upload_bytes: int = 64 * 2**20
    waiting_jobs: int = 8

    def check(self, least: int = 1, **values: Any) -> None:
        """Raise a ValueError unless the values of these attributes are within their limits; None counts as unset.

        Args:
            least: smallest whole number that is allowed; numbers with fractions may be 0.
            values: by the names of the attributes.
        """
        for name, value in values.items():
            if value is None:
                continue
            if name in FRACTIONS:
                check_numbers(**{name: value})
            else:
                check_counts(least, **{name: value})
            if value > getattr(self, name):
                raise ValueError(f"{name} must be at most {getattr(self, name):g}, received {value:g}")
