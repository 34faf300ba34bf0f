"""Both stages in one module, the bundle's ``network_def``."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Medfusion(nn.Module):
    """Autoencoder and UNet together; ``models/model.pt`` of a bundle is its state dict.

    Args:
        autoencoder: the first stage, a ``LatentAutoencoder``: ``Autoencoder``, or ``MonaiAutoencoder`` around another.
        unet: the second stage, ``UNet``, or ``MonaiUNet`` around another.
        class_names: of the UNet's labels, in label order.
        image_size: height and width of the training images.
    """

    autoencoder: Any
    unet: Any
    has_latents = True

    def __init__(
        self,
        autoencoder: nn.Module,
        unet: nn.Module,
        class_names: Sequence[str] = (),
        image_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.unet = unet
        self.class_names = list(class_names)
        self.image_size = None if image_size is None else list(image_size)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents of an image of ``image_size``.

        Raises:
            ValueError: if ``image_size`` is unknown.
        """
        if self.image_size is None:
            raise ValueError("the network was built without image_size: give it, or the sampler's latent_shape")
        return self.autoencoder.latent_shape(self.image_size)

    @property
    def main(self) -> nn.Module:
        """The network that takes most of the time of a sample."""
        return self.unet

    @property
    def image_channels(self) -> int:
        """1 (gray) or 3 (RGB)."""
        return self.autoencoder.in_channels

    def forward(self, image: Tensor) -> Tensor:
        """Reconstruct images (B, C, H, W) in [-1, 1], without randomness."""
        return self.autoencoder.reconstruct(image)

    def __prepare_scriptable__(self) -> nn.Module:
        """Return what ``torch.jit.script`` compiles: a trace of ``forward``, which only needs the autoencoder.

        This makes MONAI's ``ckpt_export`` work with its defaults, and keeps the unused UNet out of the file.
        """
        autoencoder = copy.deepcopy(self.autoencoder).eval()
        side = 8 * autoencoder.downsampling_factor
        weight = next(autoencoder.parameters())
        image = weight.new_zeros(2, autoencoder.in_channels, side, side)
        with torch.no_grad():
            return _Traced(torch.jit.trace_module(autoencoder, {"reconstruct": image}, check_trace=False))


class _Traced(nn.Module):
    """Calls ``reconstruct`` of a traced autoencoder; simple enough for ``torch.jit.script``."""

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, image: Tensor) -> Tensor:
        return self.autoencoder.reconstruct(image)  # type: ignore[operator]
