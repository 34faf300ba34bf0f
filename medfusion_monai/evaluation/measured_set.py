"""A set of images with its features, for comparisons."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medfusion_monai.evaluation.image_form import ImageFacts, content_sha256
from medfusion_monai.evaluation.image_set import ImageSet
from medfusion_monai.evaluation.metrics.feature_cache import Extraction, cached_features

logger = logging.getLogger(__name__)


class Measured(NamedTuple):
    """A set of images and what was computed from it.

    Args:
        images: the set.
        load: reads an image as it is compared: path to (C, H, W) in [0, 1].
        features: (N, D).
        facts: of its files; empty if they were not inspected.
    """

    images: ImageSet
    load: Callable[[str], Tensor]
    features: Tensor
    facts: Sequence[ImageFacts] = ()

    @property
    def name(self) -> str:
        """Name of the set in tables."""
        return self.images.name

    def stack(self, indices: Sequence[int]) -> Tensor:
        """Read some of the images: (N, C, H, W) in [0, 1]."""
        return torch.stack([self.load(self.images.items[index]["image"]) for index in indices])

    def describe(self) -> dict[str, Any]:
        """Return the description of the set for a report."""
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
    extraction: Extraction,
    facts: Sequence[ImageFacts] = (),
) -> Measured:
    """Compute the features of a set, or read them from the cache if files, form and extractor are the same.

    Args:
        images: the set.
        load: reads an image as it is compared.
        form: a description of ``load`` that distinguishes it.
        extraction: how features are computed and where they are kept.
        facts: of the files, if known.
    """
    logger.info("computing features of %d images of %s", len(images.items), images.name)
    features = cached_features(extraction, images.paths, load, form)
    return Measured(images, load, torch.from_numpy(features), facts)
