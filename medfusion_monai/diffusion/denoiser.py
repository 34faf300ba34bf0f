"""What samplers are given and ask at every step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medfusion_monai.diffusion.schedule import NoiseSchedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""Maps noisy latents (B, C, h, w) and timesteps (B,) to the network's prediction."""


def estimate(denoiser: Denoiser, latents: Tensor, schedule: NoiseSchedule, timestep: int) -> tuple[Tensor, Tensor]:
    """Call a denoiser at one timestep; return what it says of the clean latents and of the noise, (B, C, h, w) each.

    Both are of the latents' type, whatever type the network answers in.
    """
    timesteps = torch.full(latents.shape[:1], timestep, device=latents.device)
    return schedule.clean_and_noise(denoiser(latents, timesteps).to(latents.dtype), latents, timestep)
