"""The denoiser that samplers call, and what follows from its prediction at a timestep."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medfusion_monai.diffusion.schedule import NoiseSchedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""Maps noisy latents (B, C, h, w) and timesteps (B,) to the network's prediction."""


def estimate(denoiser: Denoiser, latents: Tensor, schedule: NoiseSchedule, timestep: int) -> tuple[Tensor, Tensor]:
    """Call a denoiser at one timestep; return its estimates of the clean latents and of the noise, (B, C, h, w) each.

    Both have the latents' dtype, whatever dtype the network returns.
    """
    timesteps = torch.full(latents.shape[:1], timestep, device=latents.device)
    return schedule.clean_and_noise(denoiser(latents, timesteps).to(latents.dtype), latents, timestep)
