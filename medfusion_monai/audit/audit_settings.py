"""What a user sets of an audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medfusion_monai.audit.fingerprints import FLIPS
from medfusion_monai.evaluation.settings import check_device
from medfusion_monai.runtime.values import check_counts

LATENTS = "latents"
"""The features that come with the model itself."""


@dataclass(frozen=True)
class AuditSettings:
    """How an audit measures and what it shows.

    Attributes:
        features: of ``load_extractor``, or ``latents``; None takes latents if there is a model, else ``auto``.
        size: height and width that images are resized to without a model; None takes those of the generated images.
        flips: key of ``FLIPS``: how a copy may be mirrored.
        pictures: whether the closest pairs are shown, which are images of patients.
        membership_images: training images for membership inference at most, and as many others; 0 leaves it out.
        power_images: training images whose degraded copies the guard has to find, at most; 0 leaves it out.
        replicates: resampled sets per interval of membership inference.
        batch_size: images per batch.
        device: where networks run.
        seed: of all random choices.

    Raises:
        ValueError: for a setting out of range.
    """

    features: str | None = None
    size: Sequence[int] | None = None
    flips: str = "horizontal"
    pictures: bool = True
    membership_images: int = 1000
    power_images: int = 100
    replicates: int = 1000
    batch_size: int = 16
    device: torch.device | str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_counts(0, membership_images=self.membership_images, power_images=self.power_images)
        check_counts(0, seed=self.seed, replicates=self.replicates)
        check_counts(batch_size=self.batch_size)
        check_device(self.device)
        if self.flips not in FLIPS:
            raise ValueError(f"flips is {self.flips!r}: use one of {', '.join(FLIPS)}")
