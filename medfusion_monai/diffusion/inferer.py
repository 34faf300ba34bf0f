"""The inferer of the bundles: labels and seeds in, images out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.inferers.inferer import Inferer
from torch import Tensor

from medfusion_monai.diffusion.guidance import guided_denoiser
from medfusion_monai.diffusion.randomness import generators, randn
from medfusion_monai.diffusion.samplers import ddim_sample, spaced_timesteps
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.networks.unet import NO_LABEL


class LatentDiffusionSampler(Inferer):
    """Samples images from a ``Medfusion`` network; an image depends on weights, label, seed and these settings only.

    Args:
        schedule: the schedule that the UNet was trained with.
        latent_shape: (channels, height, width) of the latents.
        num_inference_steps: DDIM steps, from 1 to the schedule's timesteps.
        guidance_scale: weight of classifier-free guidance; 1 is none.
        eta: 0 for the deterministic sampler, 1 for the published stochastic one.
        negative_label: label to steer away from; the unconditional prediction if None.
        null_label: what stands for 'no label' in the UNet's training.

    Raises:
        ValueError: for a setting out of range, or a negative label without guidance.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        latent_shape: Sequence[int],
        num_inference_steps: int = 150,
        guidance_scale: float = 1.0,
        eta: float = 1.0,
        negative_label: int | None = None,
        null_label: int = NO_LABEL,
    ) -> None:
        super().__init__()
        spaced_timesteps(num_inference_steps, schedule.num_train_timesteps)  # raises at once
        if not _is_number(eta) or not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta must be between 0 and 1, received {eta!r}")
        if not _is_number(guidance_scale):
            raise ValueError(f"guidance_scale must be a number, 1 for no guidance, received {guidance_scale!r}")
        if negative_label is not None and guidance_scale == 1.0:
            raise ValueError("negative_label has no effect at guidance_scale 1: raise guidance_scale or drop it")
        self.schedule = schedule
        self.latent_shape = tuple(latent_shape)
        self.num_inference_steps = num_inference_steps
        self.guidance_scale = float(guidance_scale)
        self.eta = float(eta)
        self.negative_label = negative_label
        self.null_label = null_label

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self, inputs: Tensor, network: Medfusion, seeds: Sequence[int] | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Sample images (B, C, H, W) in [0, 1].

        Args:
            inputs: labels (B,), integers.
            network: a ``Medfusion``: ``network.unet`` and ``network.autoencoder``.
            seeds: one a sample; drawn from the global random state if None.
            args: ignored, for the interface of MONAI's inferers.
            kwargs: ignored likewise.
        """
        device = inputs.device
        if seeds is None:
            seeds = [int(seed) for seed in torch.randint(2**62, inputs.shape[:1])]
        sources = generators(seeds)
        latents = ddim_sample(
            guided_denoiser(network.unet, inputs, self.guidance_scale, self.negative_label, self.null_label),
            randn(self.latent_shape, sources, device),
            self.schedule,
            self.num_inference_steps,
            self.eta,
            lambda: randn(self.latent_shape, sources, device),
        )
        return (network.autoencoder.decode_stage_2_outputs(latents) * 0.5 + 0.5).clamp(0.0, 1.0)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
