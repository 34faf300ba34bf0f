"""Networks with MONAI's interface (``AutoencoderKL``, ``DiffusionModelUNet``) in place of ours."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets.autoencoderkl import AutoencoderKL as _AutoencoderKL
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet as _DiffusionModelUNet
from torch import Tensor, nn
from torch.nn import functional as F

from medfusion_monai.networks.autoencoder import DiagonalGaussian, LatentAutoencoder
from medfusion_monai.networks.described import Described, describable

SMALLEST_STD = 3.1e-7  # exp(-15), the lower limit in AutoencoderKL as well
DECODING = ("post_quant_conv", "decoder")
"""Modules of MONAI's autoencoders that ``decode`` uses."""


@describable
class AutoencoderKL(Described, _AutoencoderKL):
    """MONAI's ``AutoencoderKL``, with its constructor arguments recorded."""


@describable
class DiffusionModelUNet(Described, _DiffusionModelUNet):
    """MONAI's ``DiffusionModelUNet``, with its constructor arguments recorded."""


@describable
class MonaiAutoencoder(LatentAutoencoder):
    """A first stage of MONAI with the latent statistics that both phases need; no half-resolution output.

    Args:
        network: with ``encode``, which returns mean and standard deviation of the latents, ``decode`` and ``decoder``,
            like ``monai.networks.nets.AutoencoderKL``.
        in_channels: image channels of the network, in and out.
        latent_channels: latent channels of the network.
        downsampling_factor: ratio of image height and width to those of latents; each level of an ``AutoencoderKL``
            after the first doubles it.

    Raises:
        ValueError: if the network has another interface, or its channels or sizes differ from the arguments.
    """

    def __init__(
        self, network: nn.Module, in_channels: int = 1, latent_channels: int = 8, downsampling_factor: int = 8
    ) -> None:
        super().__init__(in_channels, latent_channels, downsampling_factor)
        self.network: Any = network
        self._check_interface()
        self._check_shapes()

    def encode(self, image: Tensor) -> DiagonalGaussian:
        """Return the posterior of the raw latents, (B, latent_channels, h, w), of images (B, C, H, W) in [-1, 1].

        Raises:
            ValueError: if the channels or the size do not fit.
        """
        self.check_image(image)
        mean, std = self.network.encode(image)
        return DiagonalGaussian(torch.cat([mean, 2.0 * std.clamp_min(SMALLEST_STD).log()], dim=1))

    def decode(self, latents: Tensor) -> Tensor:
        """Map raw latents (B, latent_channels, h, w) to images (B, C, H, W) in about [-1, 1]."""
        return self.network.decode(latents)

    @property
    def encoder_parts(self) -> list[nn.Module]:
        """All modules of the network but those that decode."""
        return [part for name, part in self.network.named_children() if name not in DECODING]

    @property
    def output_layers(self) -> list[Tensor]:
        """Weight of the last convolution of the decoder."""
        return [[module.weight for module in self.network.decoder.modules() if isinstance(module, nn.Conv2d)][-1]]

    def _check_interface(self) -> None:
        name = type(self.network).__name__
        missing = [part for part in ("encode", "decode", "decoder") if not hasattr(self.network, part)]
        if missing:
            raise ValueError(f"network {name} has no {', '.join(missing)}: give one like MONAI's AutoencoderKL")
        if not any(isinstance(module, nn.Conv2d) for module in self.network.decoder.modules()):
            raise ValueError(f"the decoder of network {name} has no 2D convolution: build it with spatial_dims=2")

    @torch.no_grad()
    def _check_shapes(self) -> None:
        side = 2 * self.downsampling_factor
        image = next(self.network.parameters()).new_zeros(1, self.in_channels, side, side)
        try:
            moments = self.network.encode(image)
        except RuntimeError as error:
            raise ValueError(f"network cannot encode images of in_channels={self.in_channels}: {error}") from error
        if not isinstance(moments, tuple) or len(moments) != 2:
            raise ValueError(
                "network.encode does not return mean and standard deviation: a network without a Gaussian of "
                "latents, such as a VQVAE, cannot be the first stage; use AutoencoderKL"
            )
        found, expected = tuple(moments[0].shape[1:]), (self.latent_channels, 2, 2)
        if found != expected:
            raise ValueError(
                f"network encodes an image of {side}x{side} pixels to latents {found}, but latent_channels="
                f"{self.latent_channels} and downsampling_factor={self.downsampling_factor} imply {expected}: make "
                "them agree"
            )
        channels = self.network.decode(moments[0]).shape[1]
        if channels != self.in_channels:
            raise ValueError(f"network has in_channels={self.in_channels} but out_channels={channels}: make them equal")


@describable
class MonaiUNet(Described, nn.Module):
    """A UNet of MONAI with the interface of ours: a label of -1 means 'no label', here a learned class of its own.

    Latents whose sides the network cannot halve are padded by replication, and the estimate is cropped to size.

    Args:
        network: called like ``monai.networks.nets.DiffusionModelUNet``, and built with ``num_class_embeds`` one more
            than ``num_classes`` (the last one is 'no label').
        num_classes: number of labels, or None for an unconditional network.

    Raises:
        ValueError: if the network was built for another number of classes.
    """

    def __init__(self, network: nn.Module, num_classes: int | None = 2) -> None:
        super().__init__()
        expected = None if num_classes is None else num_classes + 1
        found = getattr(network, "num_class_embeds", None)
        if found != expected:
            raise ValueError(
                f"network has num_class_embeds={found}, but num_classes={num_classes} requires {expected}: one per "
                "label and one for 'no label'"
            )
        self.network, self.num_classes = network, num_classes
        self.size_factor = 2 ** (len(getattr(network, "down_blocks", [None])) - 1)

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, class_labels: Tensor | None = None
    ) -> Tensor:
        """Predict the noise in noisy latents, or whatever the schedule's prediction type is.

        Args:
            x: noisy latents (B, in_channels, h, w).
            timesteps: (B,), or (1,) for all.
            context: for the network's cross-attention, if any.
            class_labels: (B,) integers, ``NO_LABEL`` (or any negative) for a sample without one; None for no labels.

        Returns:
            (B, out_channels, h, w).

        Raises:
            ValueError: if labels are given to a network without classes.
        """
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.size_factor, 0, -height % self.size_factor), mode="replicate")
        labels = self._class_indices(len(x), class_labels, x.device)
        return self.network(x, timesteps, context=context, class_labels=labels)[..., :height, :width]

    def _class_indices(self, count: int, class_labels: Tensor | None, device: torch.device) -> Tensor | None:
        if self.num_classes is None:
            if class_labels is not None:
                raise ValueError("class_labels were given to a UNet that was built with num_classes=None")
            return None
        if class_labels is None:
            return torch.full((count,), self.num_classes, device=device)
        return torch.where(class_labels < 0, self.num_classes, class_labels)
