"""Sampling in a few steps, with weights that were tuned for it (Song et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medfusion_monai.diffusion.denoiser import Denoiser, estimate
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.diffusion.spacing import Spacing, schedule_timesteps

STEPS = (1, 2, 4, 8)
"""Numbers of steps that weights are tuned for."""


def consistency_timesteps(
    schedule: NoiseSchedule, num_inference_steps: int, spacing: Spacing = "linspace"
) -> list[int]:
    """Return the timesteps of ``schedule_timesteps`` for one step more, without the last: clean latents follow it.

    Raises:
        ValueError: for another number of steps than those of ``STEPS``, or an unknown spacing.
    """
    if num_inference_steps not in STEPS:
        raise ValueError(
            f"num_inference_steps must be one of {', '.join(map(str, STEPS))} with sampler consistency, received "
            f"{num_inference_steps!r}: choose one of them, or weights that are not tuned for few steps"
        )
    return schedule_timesteps(schedule, num_inference_steps + 1, spacing)[:-1]


def consistency_sample(
    denoiser: Denoiser,
    latents: Tensor,
    schedule: NoiseSchedule,
    num_inference_steps: int = 4,
    draw_noise: Callable[[], Tensor] | None = None,
    spacing: Spacing = "linspace",
) -> Tensor:
    """Turn noise into clean latents: estimate them, add fresh noise of the next level, repeat (algorithm 1).

    Args:
        denoiser: the network with its condition; its estimate of the clean latents is the end of the path through its
            input.
        latents: (B, C, h, w) of standard normal noise; their dtype is that of the sampler's arithmetic.
        schedule: the schedule that the network was trained with.
        num_inference_steps: one of ``STEPS``.
        draw_noise: returns standard normal noise of the latents' shape, called before each step but the first; the
            global random state if None.
        spacing: which timesteps are used, see ``consistency_timesteps``.

    Returns:
        (B, C, h, w): the clean latents of the last estimate.

    Raises:
        ValueError: see ``consistency_timesteps``.
    """
    draw_noise = draw_noise or (lambda: torch.randn_like(latents))
    first, *others = consistency_timesteps(schedule, num_inference_steps, spacing)
    clean, _ = estimate(denoiser, latents, schedule, first)
    for timestep in others:
        noisy = schedule.exact_signal[timestep] * clean + schedule.exact_sigma[timestep] * draw_noise()
        clean, _ = estimate(denoiser, noisy, schedule, timestep)
    return clean
