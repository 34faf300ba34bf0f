"""Both stages in one module, as the bundle's ``network_def``."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Medfusion(nn.Module):
    """Autoencoder and UNet together; ``models/model.pt`` of a bundle is its state dict.

    Args:
        autoencoder: the first stage, a ``LatentAutoencoder``: ``Autoencoder``, or ``MonaiAutoencoder`` around another.
        unet: the second stage, ``UNet``, or ``MonaiUNet`` around another.
    """

    autoencoder: Any
    unet: Any

    def __init__(self, autoencoder: nn.Module, unet: nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.unet = unet

    def forward(self, image: Tensor) -> Tensor:
        """Reconstruct images (B, C, H, W) in [-1, 1], without randomness."""
        return self.autoencoder.reconstruct(image)
