"""The published procedures of training and sampling, built from this project's networks.

What they cost is theirs: every image is encoded again at every step, everything is in float32 with PyTorch's usual
memory layout, noising waits for the device once a sample, guidance is two calls of the network, sampling takes 150
stochastic steps, and images are fetched one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from medfusion_monai.diffusion.ddim import ddim_sample
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.networks.medfusion import Medfusion

NUM_INFERENCE_STEPS = 150
ETA = 1.0


class PublishedTraining:
    """A step of phase two as published: AdamW on all weights, no averaged weights, no clipping.

    Args:
        network: both networks; the UNet is trained.
        device: where to compute.
    """

    def __init__(self, network: Medfusion, device: torch.device) -> None:
        self.network, self.device = network, device
        self.schedule = NoiseSchedule().to(device)
        self.optimizer = torch.optim.AdamW(network.unet.parameters(), lr=1e-4)
        self.coins = torch.Generator().manual_seed(0)

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        """Take a step on ``image`` (B, C, H, W) in [0, 1] and ``label`` (B,), and give the loss."""
        image = batch["image"].to(self.device) * 2.0 - 1.0
        with torch.no_grad():
            latents = self.network.autoencoder.encode_stage_2_inputs(image)
        timesteps = torch.randint(self.schedule.num_train_timesteps, latents.shape[:1], device=self.device)
        noise = torch.randn_like(latents)
        noisy = torch.stack([self._noisy(*sample) for sample in zip(latents, noise, timesteps, strict=True)])
        dropped = torch.rand((), generator=self.coins) < 0.5  # for the whole batch at once
        labels = None if dropped else batch["label"].to(self.device)
        self.optimizer.zero_grad()
        loss = nn.functional.l1_loss(self.network.unet(noisy, timesteps=timesteps, class_labels=labels), noise)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _noisy(self, latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        alpha = self.schedule.alphas_cumprod[int(timestep)]  # the wait
        return alpha.sqrt() * latents + (1.0 - alpha).sqrt() * noise


def two_call_denoiser(
    unet: nn.Module, class_labels: Tensor, guidance_scale: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """Guidance by one call with the labels and one without, or a single call at guidance 1."""

    def denoise(latents: Tensor, timesteps: Tensor) -> Tensor:
        positive = unet(latents, timesteps=timesteps, class_labels=class_labels)
        if guidance_scale == 1.0:
            return positive
        negative = unet(latents, timesteps=timesteps, class_labels=None)
        return negative + guidance_scale * (positive - negative)

    return denoise


class PublishedSampling:
    """Sampling as published: stochastic DDIM of 150 steps, decoding in float32, images fetched one by one.

    Args:
        network: both networks.
        latent_shape: (C, h, w) of latents.
        count: images B at a time.
        device: where to compute.
    """

    def __init__(self, network: Medfusion, latent_shape: Sequence[int], count: int, device: torch.device) -> None:
        self.network, self.schedule = network, NoiseSchedule()
        self.noise = torch.randn(count, *latent_shape, device=device)
        self.class_labels = torch.arange(count, device=device) % 2

    @torch.no_grad()
    def latents(self, guidance_scale: float, num_inference_steps: int) -> Tensor:
        """Sample latents (B, C, h, w)."""
        denoiser = two_call_denoiser(self.network.unet, self.class_labels, guidance_scale)
        return ddim_sample(denoiser, self.noise, self.schedule, num_inference_steps, ETA)

    @torch.no_grad()
    def images(self, latents: Tensor | None = None) -> list[Tensor]:
        """Decode latents, noise if None, to images (C, H, W) in [0, 1] on the host."""
        decoded = self.network.autoencoder.decode_stage_2_outputs(self.noise if latents is None else latents)
        return [(image * 0.5 + 0.5).clamp(0.0, 1.0).cpu() for image in decoded]

    def __call__(self, guidance_scale: float) -> list[Tensor]:
        """Sample images (C, H, W) in [0, 1] on the host."""
        return self.images(self.latents(guidance_scale, NUM_INFERENCE_STEPS))
