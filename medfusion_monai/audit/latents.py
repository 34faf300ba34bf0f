"""A model's own latents as features, available for every trained model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from medfusion_monai.evaluation.metrics.feature_networks import FeatureExtractor
from medfusion_monai.networks.autoencoder import LatentAutoencoder

MOST = 8
"""Height and width that larger latents are averaged to, which hides small shifts."""


class LatentFeatures(FeatureExtractor):
    """The mode of an autoencoder's posterior, normalized to unit variance and averaged to at most 8x8 positions.

    Args:
        autoencoder: with its weights.
        sha256: of the weights file.
        image_size: height and width of the images.
    """

    def __init__(self, autoencoder: LatentAutoencoder, sha256: str, image_size: Sequence[int]) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder.eval()
        self.name, self.sha256, self.resize = "latents of the autoencoder", sha256, "none"
        self.channels = autoencoder.in_channels
        height, width = (min(MOST, side // autoencoder.downsampling_factor) for side in image_size)
        self.size = (height, width)
        self.dimensions = autoencoder.latent_channels * height * width

    def extract(self, image: Tensor) -> Tensor:
        """Return the latents (B, D)."""
        latents = self.autoencoder.normalize(self.autoencoder.encode(image * 2.0 - 1.0).mode())
        return F.adaptive_avg_pool2d(latents, self.size).flatten(1)
