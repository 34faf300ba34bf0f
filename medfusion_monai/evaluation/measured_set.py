"""A set of images with its features: what comparisons are made of."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medfusion_monai.evaluation.image_form import ImageFacts, content_sha256
from medfusion_monai.evaluation.image_set import ImageSet
from medfusion_monai.evaluation.metrics.feature_cache import cached_features

logger = logging.getLogger(__name__)


class Measured(NamedTuple):
    """A set of images and what was computed of it.

    Args:
        images: the set.
        load: reads an image as it is compared: path to (C, H, W) in [0, 1].
        features: (N, D).
        facts: what its files hold; empty if they were not inspected.
    """

    images: ImageSet
    load: Callable[[str], Tensor]
    features: Tensor
    facts: Sequence[ImageFacts] = ()

    @property
    def name(self) -> str:
        """What tables call the set."""
        return self.images.name

    def stack(self, indices: Sequence[int]) -> Tensor:
        """Read some of the images: (N, C, H, W) in [0, 1]."""
        return torch.stack([self.load(self.images.items[index]["image"]) for index in indices])

    def describe(self) -> dict[str, Any]:
        """Return what a report says of the set."""
        known = {"content_sha256": content_sha256(self.facts)} if self.facts else {}
        shape = self.stack([0]).shape
        return {
            "name": self.name,
            "source": self.images.source,
            "count": len(self.images.items),
            "classes": self.images.counts(),
            "size": list(shape[-2:]),
            "channels": shape[1],
            **known,
        }


def measure_set(
    images: ImageSet,
    load: Callable[[str], Tensor],
    form: str,
    extractor: Any,
    cache_dir: str | Path | None = None,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    facts: Sequence[ImageFacts] = (),
) -> Measured:
    """Compute the features of a set, or take them from the cache if files, form and extractor are the same.

    Args:
        images: the set.
        load: reads an image as it is compared.
        form: ``load`` in words.
        extractor: of ``load_extractor``.
        cache_dir: folder of the features.
        batch_size: images at once.
        device: where to compute.
        facts: what the files hold, if known.
    """
    logger.info("features of %d images of %s", len(images.items), images.name)

    features = cached_features(extractor, images.paths, load, cache_dir, batch_size, device, form)
    return Measured(images, load, torch.from_numpy(features), facts)
