"""The denoiser that samplers call, and what follows from its prediction at a timestep."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medfusion_monai.diffusion.schedule import NoiseSchedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""Maps noisy latents (B, C, h, w) and timesteps (B,) to the network's prediction."""


class DenoiserByTimestep:
    """A denoiser that is one of several, depending on the timestep.

    ``estimate`` asks for that of its timestep, which the host knows. Called like any other, it reads the timestep from
    the device, for which the host waits.

    Args:
        at: returns the denoiser of a timestep.
    """

    def __init__(self, at: Callable[[int], Denoiser]) -> None:
        self.at = at

    def __call__(self, latents: Tensor, timesteps: Tensor) -> Tensor:
        """Return the prediction for noisy latents (B, C, h, w) at timesteps (B,), all of them the same."""
        return self.at(int(timesteps[0]))(latents, timesteps)


def estimate(denoiser: Denoiser, latents: Tensor, schedule: NoiseSchedule, timestep: int) -> tuple[Tensor, Tensor]:
    """Call a denoiser at one timestep; return its estimates of the clean latents and of the noise, (B, C, h, w) each.

    Both have the latents' dtype, whatever dtype the network returns.
    """
    if isinstance(denoiser, DenoiserByTimestep):
        denoiser = denoiser.at(timestep)
    timesteps = torch.full(latents.shape[:1], timestep, device=latents.device)
    return schedule.clean_and_noise(denoiser(latents, timesteps).to(latents.dtype), latents, timestep)
