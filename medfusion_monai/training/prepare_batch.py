"""Inputs of a step: images or latents with noise, timesteps and labels, drawn from each sample's own seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medfusion_monai.baselines.augmentation import draw
from medfusion_monai.diffusion.guidance import drop_labels
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.networks.autoencoder import DiagonalGaussian, LatentAutoencoder
from medfusion_monai.networks.unet import NO_LABEL
from medfusion_monai.runtime.dtype import autocast
from medfusion_monai.runtime.seeds import generators, randn
from medfusion_monai.training.equivariance import draw_transform

Batch = dict[str, Any]


class AutoencoderPrepareBatch:
    """Prepares images in [-1, 1] and the noise that samples their latents, for the autoencoder's trainer.

    Args:
        autoencoder: the network being trained; defines the shape of the latents.
        equivariance: probability that the latents of a batch are scaled or turned before they are decoded, see
            ``LatentTransform``; the targets are then scaled and turned too.
    """

    def __init__(self, autoencoder: LatentAutoencoder, equivariance: float = 0.0) -> None:
        self.channels, self.factor = autoencoder.latent_channels, autoencoder.downsampling_factor
        self.equivariance = equivariance

    def __call__(
        self, batch: Batch, device: torch.device, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor, tuple[()], dict[str, Any]]:
        """Turn ``image`` (B, C, H, W) in [0, 1] and ``seed`` into (inputs, targets, (), keywords of the network)."""
        image, sources = to_network(batch["image"], device, non_blocking), generators(batch["seed"])
        shape = (self.channels, image.shape[-2] // self.factor, image.shape[-1] // self.factor)
        keywords: dict[str, Any] = {"noise": to_device(randn(shape, sources), device)}
        transform = draw_transform(sources[0], self.equivariance)
        if transform is None:
            return image, image, (), keywords
        return image, transform.of_images(image, self.factor), (), keywords | {"latent_transform": transform}


class DistillationPrepareBatch:
    """Prepares latents of unit variance and what the autoencoder decodes them to, for another decoder's trainer.

    Args:
        autoencoder: the trained one; no gradients reach it.
        dtype: in which it runs.
    """

    def __init__(self, autoencoder: LatentAutoencoder, dtype: torch.dtype = torch.float32) -> None:
        self.autoencoder, self.dtype = autoencoder, dtype
        self._prepare = AutoencoderPrepareBatch(autoencoder)

    @torch.no_grad()
    def __call__(
        self, batch: Batch, device: torch.device, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor, tuple[()], dict[str, Any]]:
        """Turn ``image`` (B, C, H, W) in [0, 1] and ``seed`` into (latents, images in about [-1, 1], (), {})."""
        image, _, _, keywords = self._prepare(batch, device, non_blocking)
        with autocast(device, self.dtype):
            latents = self.autoencoder.eval().encode(image).sample(keywords["noise"])
            decoded = self.autoencoder.decode(latents)
        return self.autoencoder.normalize(latents.float()), decoded.float(), (), {}


class DiffusionPrepareBatch:
    """Prepares noisy latents, timesteps, labels and targets for the UNet's trainer.

    Each pass over an image draws a new sample of its posterior, new noise and a new timestep, and may drop its label.

    Args:
        autoencoder: the first stage; no gradients reach it.
        schedule: noise schedule, which also defines the prediction type.
        label_dropout: probability of dropping the label of a sample; published 0.5.
        null_label: stands for 'no label' in the UNet.
        timesteps: those to draw from; None for all of the schedule.

    Raises:
        ValueError: for a probability outside [0, 1].
    """

    def __init__(
        self,
        autoencoder: LatentAutoencoder,
        schedule: NoiseSchedule,
        label_dropout: float = 0.5,
        null_label: int = NO_LABEL,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        if not 0.0 <= label_dropout <= 1.0:
            raise ValueError(f"label_dropout must be between 0 and 1, received {label_dropout}")
        self.autoencoder = autoencoder
        self.schedule, self.label_dropout, self.null_label = schedule, label_dropout, null_label
        self.timesteps = range(schedule.num_train_timesteps) if timesteps is None else timesteps

    @torch.no_grad()
    def __call__(
        self, batch: Batch, device: torch.device, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor, tuple[()], dict[str, Tensor]]:
        """Turn a batch into (noisy latents, targets, (), keywords of the UNet).

        Args:
            batch: ``image`` (B, C, H, W) in [0, 1], or ``moments`` of ``cached_latents``; ``label``; ``seed``.
            device: of the results.
            non_blocking: whether copies may be asynchronous.
            kwargs: ignored.
        """
        sources = generators(batch["seed"])
        if "moments" in batch:
            posterior = DiagonalGaussian(batch["moments"].to(device, non_blocking=non_blocking).float())
        else:
            # In float32 like cached latents: training with and without a cache sees the same ones.
            posterior = self.autoencoder.eval().encode(to_network(batch["image"], device, non_blocking))
        shape = posterior.mean.shape[1:]
        latents = self.autoencoder.normalize(posterior.sample(to_device(randn(shape, sources), device)))
        noise = to_device(randn(shape, sources), device)
        timesteps = torch.tensor([self.timesteps[int(source.integers(len(self.timesteps)))] for source in sources])
        labels = torch.as_tensor(batch["label"]).cpu()
        labels = drop_labels(labels, sources, self.label_dropout, self.null_label)
        timesteps, labels = to_device(timesteps, device), to_device(labels, device)
        noisy = self.schedule.add_noise(latents, noise, timesteps)
        target = self.schedule.target(latents, noise, timesteps)
        return noisy, target, (), {"timesteps": timesteps, "class_labels": labels}


class GanPrepareBatch:
    """Prepares real images in [-1, 1], their labels, and noise for as many generated images.

    Args:
        noise_channels: length of the noise of an image.
    """

    def __init__(self, noise_channels: int) -> None:
        self.noise_channels = noise_channels

    def __call__(
        self, batch: Batch, device: torch.device, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor, tuple[Tensor], dict[str, Tensor]]:
        """Turn ``image`` (B, C, H, W) in [0, 1], ``label`` and ``seed`` into what a step of a GAN needs.

        Returns:
            noise (B, noise_channels); the real images; random numbers (2B, DRAWS) to augment the real images, then the
            generated ones; ``class_labels`` (B,).
        """
        sources = generators(batch["seed"])
        noise = to_device(randn((self.noise_channels,), sources), device)
        draws = to_device(torch.cat([draw(sources), draw(sources)]), device)
        labels = to_device(torch.as_tensor(batch["label"]).cpu(), device)
        return noise, to_network(batch["image"], device, non_blocking), (draws,), {"class_labels": labels}


class ReconstructionPrepareBatch:
    """Prepares images in [-1, 1] to reconstruct, and in [0, 1] to compare with."""

    def __call__(
        self, batch: Batch, device: torch.device, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Turn ``image`` (B, C, H, W) in [0, 1] into (inputs, images)."""
        return to_network(batch["image"], device, non_blocking), batch["image"].to(device, non_blocking=non_blocking)


class SamplingPrepareBatch:
    """Prepares labels and seeds from the entries of ``sampling_plan`` for the sampler."""

    def __call__(
        self, batch: Batch, device: torch.device, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, None, tuple[()], dict[str, Any]]:
        """Turn ``label`` and ``seed``, B of each, into (labels (B,), None, (), seeds)."""
        labels = torch.as_tensor(batch["label"]).to(device, non_blocking=non_blocking)
        return labels, None, (), {"seeds": [int(seed) for seed in batch["seed"]]}


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the CPU to the device, without making a GPU wait."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def to_network(image: Tensor, device: torch.device, non_blocking: bool = False) -> Tensor:
    """Copy images in [0, 1] to the device and scale them to [-1, 1]."""
    return image.to(device, non_blocking=non_blocking) * 2.0 - 1.0
