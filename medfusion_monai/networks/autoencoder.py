"""The first stage: an autoencoder that reduces height and width 8 times, to a Gaussian of latents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from medfusion_monai.networks.blocks import Downsample, ResidualBlock, Upsample, zero_init
from medfusion_monai.networks.described import Described, describable
from medfusion_monai.runtime.values import check_counts


class DiagonalGaussian:
    """The posterior of the latents given an image: a Gaussian with independent values.

    Args:
        moments: (B, 2C, H, W), mean and log-variance; the latter is clamped to [-30, 20].
    """

    def __init__(self, moments: Tensor) -> None:
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """Draw latents (B, C, H, W), from the given standard normal noise of that shape or from fresh noise."""
        noise = torch.randn_like(self.mean) if noise is None else noise
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def mode(self) -> Tensor:
        """Return the most likely latents (B, C, H, W)."""
        return self.mean

    def kl(self) -> Tensor:
        """Divergence from the unit Gaussian, summed over values, averaged over the batch (Kingma 2014, app. B)."""
        kl = 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar)
        return kl.sum() / kl.shape[0]


class AutoencoderOutput(NamedTuple):
    """Output of the autoencoder in training.

    Attributes:
        reconstruction: (B, channels, H, W) in about [-1, 1].
        reconstruction_low: (B, channels, H/2, W/2), or None without deep supervision.
        posterior: the Gaussian that the latents were drawn from; None for a decoder alone.
    """

    reconstruction: Tensor
    reconstruction_low: Tensor | None
    posterior: DiagonalGaussian | None


class LatentAutoencoder(Described, nn.Module, ABC):
    """Interface of a first stage: a Gaussian of latents, images from latents, statistics of the latents.

    Images enter and leave in [-1, 1]. ``encode`` and ``decode`` work on raw latents, as published.
    ``encode_stage_2_inputs`` and ``decode_stage_2_outputs`` (MONAI's names) work on latents that
    ``latent_mean`` and ``latent_std`` bring to zero mean and unit variance; these buffers are measured on the
    training set after phase one and saved with the weights.

    Args:
        in_channels: image channels, 1 (gray) or 3 (RGB).
        latent_channels: channels of the latents.
        downsampling_factor: ratio of image height and width to those of latents.
    """

    def __init__(self, in_channels: int, latent_channels: int, downsampling_factor: int) -> None:
        super().__init__()
        self.in_channels, self.latent_channels = in_channels, latent_channels
        self.downsampling_factor = downsampling_factor
        self.latent_mean: Tensor
        self.latent_std: Tensor
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_std", torch.ones(latent_channels))

    @abstractmethod
    def encode(self, image: Tensor) -> DiagonalGaussian:
        """Return the posterior of the raw latents, (B, latent_channels, h, w), of images (B, C, H, W) in [-1, 1].

        Raises:
            ValueError: if the channels or the size do not fit.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Map raw latents (B, latent_channels, h, w) to images (B, C, H, W) in about [-1, 1]."""

    def decode_with_low(self, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        """Like ``decode``, with the image at half resolution as well (None without deep supervision)."""
        return self.decode(latents), None

    @property
    @abstractmethod
    def encoder_parts(self) -> list[nn.Module]:
        """The modules that ``encode`` uses and ``decode`` does not."""

    @property
    @abstractmethod
    def output_layers(self) -> list[Tensor]:
        """Weights of the convolutions that write the image and, with deep supervision, that of half resolution."""

    def latent_shape(self, image_size: Sequence[int]) -> tuple[int, int, int]:
        """Return channels, height and width of the latents of an image of this height and width."""
        height, width = (side // self.downsampling_factor for side in image_size)
        return self.latent_channels, height, width

    def check_image(self, image: Tensor) -> None:
        """Raise a ValueError if the channels or the size of images (B, C, H, W) do not fit."""
        factor = self.downsampling_factor
        if image.shape[1] != self.in_channels:
            raise ValueError(
                f"image has {image.shape[1]} channels, but the autoencoder was built for {self.in_channels}"
            )
        if image.shape[-1] % factor or image.shape[-2] % factor:
            raise ValueError(f"image size {tuple(image.shape[-2:])} is not divisible by {factor}: resize or pad it")

    def set_latent_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Store mean and standard deviation, (latent_channels,) each, of the raw latents of the training set."""
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)

    def normalize(self, latents: Tensor) -> Tensor:
        """Bring raw latents to zero mean and unit variance per channel."""
        return (latents - self.latent_mean[:, None, None]) / self.latent_std[:, None, None]

    def denormalize(self, latents: Tensor) -> Tensor:
        """Undo ``normalize``."""
        return latents * self.latent_std[:, None, None] + self.latent_mean[:, None, None]

    def encode_stage_2_inputs(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Draw unit-variance latents (B, latent_channels, h, w) of images (B, C, H, W) in [-1, 1]."""
        return self.normalize(self.encode(image).sample(noise))

    def decode_stage_2_outputs(self, latents: Tensor) -> Tensor:
        """Map unit-variance latents (B, latent_channels, h, w) to images (B, C, H, W) in about [-1, 1]."""
        return self.decode(self.denormalize(latents))

    def reconstruct(self, image: Tensor) -> Tensor:
        """Encode and decode images (B, C, H, W) in [-1, 1] by the most likely latents, without randomness."""
        return self.decode(self.encode(image).mode())

    def forward(
        self,
        image: Tensor,
        noise: Tensor | None = None,
        latent_transform: Callable[[Tensor], Tensor] | None = None,
    ) -> AutoencoderOutput:
        """Reconstruct images (B, C, H, W) in [-1, 1] from latents drawn from their posterior.

        Args:
            image: (B, C, H, W) in [-1, 1].
            noise: standard normal values of the latents' shape to draw them from; fresh ones if None.
            latent_transform: of the latents before they are decoded; None for none.
        """
        posterior = self.encode(image)
        latents = posterior.sample(noise)
        if latent_transform is not None:
            latents = latent_transform(latents)
        return AutoencoderOutput(*self.decode_with_low(latents), posterior)


def decoder_names(autoencoder: LatentAutoencoder) -> set[str]:
    """Return the names of the weights that do not change the latents."""
    encoding = {id(value) for part in autoencoder.encoder_parts for value in part.parameters()}
    return {name for name, value in autoencoder.named_parameters() if id(value) not in encoding}


@describable
class Autoencoder(LatentAutoencoder):
    """Variational autoencoder of Medfusion (Mueller-Franzes et al. 2022, figure 2); 13.37 M weights as published.

    Args:
        in_channels: image channels, 1 (gray) or 3 (RGB).
        latent_channels: channels of the latents.
        channels: widths per level; each level after the first halves height and width.
        norm_groups: groups of the normalisations.
        deep_supervision: also predict the image at half resolution.

    Raises:
        ValueError: if ``norm_groups`` does not divide a width.
    """

    def __init__(
        self,
        in_channels: int = 1,
        latent_channels: int = 8,
        channels: Sequence[int] = (64, 128, 256, 512),
        norm_groups: int = 8,
        deep_supervision: bool = True,
    ) -> None:
        super().__init__(in_channels, latent_channels, 2 ** (len(channels) - 1))
        check_widths(channels, norm_groups)

        self.conv_in = ResidualBlock(in_channels, channels[0], norm_groups)
        self.encoder = nn.ModuleList(
            nn.Sequential(Downsample(a, b), ResidualBlock(b, b, norm_groups)) for a, b in pairwise(channels)
        )
        moments_channels = 2 * latent_channels
        self.to_moments = nn.Sequential(
            nn.Conv2d(channels[-1], moments_channels, 3, padding=1), nn.Conv2d(moments_channels, moments_channels, 1)
        )
        self.from_latents = ResidualBlock(latent_channels, channels[-1], norm_groups)
        self.decoder = nn.ModuleList(  # from the lowest resolution to the highest
            nn.Sequential(Upsample(a, b), ResidualBlock(b, b, norm_groups)) for a, b in pairwise(channels[::-1])
        )
        self.conv_out = zero_init(nn.Conv2d(channels[0], in_channels, 1))
        self.conv_out_low = zero_init(nn.Conv2d(channels[1], in_channels, 1)) if deep_supervision else None

    def encode(self, image: Tensor) -> DiagonalGaussian:
        """Return the posterior of the raw latents, (B, latent_channels, H/8, W/8), of images (B, C, H, W) in [-1, 1].

        Raises:
            ValueError: if the channels or the size do not fit.
        """
        self.check_image(image)
        x = self.conv_in(image)
        for level in self.encoder:
            x = level(x)
        return DiagonalGaussian(self.to_moments(x))

    def decode(self, latents: Tensor) -> Tensor:
        """Map raw latents (B, latent_channels, h, w) to images (B, C, 8h, 8w) in about [-1, 1]."""
        return self.decode_with_low(latents)[0]

    def decode_with_low(self, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        """Like ``decode``, with the image at half resolution as well (None without deep supervision)."""
        x = self.from_latents(latents)
        low = None
        for index, level in enumerate(self.decoder):
            if index == len(self.decoder) - 1 and self.conv_out_low is not None:
                low = self.conv_out_low(x)
            x = level(x)
        return self.conv_out(x), low

    @property
    def encoder_parts(self) -> list[nn.Module]:
        """The modules from the image to the moments of its posterior."""
        return [self.conv_in, self.encoder, self.to_moments]

    @property
    def output_layers(self) -> list[Tensor]:
        """Weights of ``conv_out`` and, with deep supervision, ``conv_out_low``."""
        heads = [self.conv_out] if self.conv_out_low is None else [self.conv_out, self.conv_out_low]
        return [head.get_parameter("weight") for head in heads]


def check_widths(channels: Sequence[int], norm_groups: int) -> None:
    """Raise a ValueError if ``norm_groups`` does not divide all ``channels``, or for fewer than two levels."""
    check_counts(norm_groups=norm_groups)
    if len(channels) < 2:
        raise ValueError(f"channels must name at least two levels, received {list(channels)}")
    wrong = [width for width in channels if width <= 0 or width % norm_groups]
    if wrong:
        raise ValueError(
            f"channels {wrong} are not positive multiples of norm_groups={norm_groups}: change channels or norm_groups"
        )
