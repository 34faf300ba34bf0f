"""Sampling in a few steps, with weights that were tuned for their number."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from medfusion_monai.diffusion.denoiser import Denoiser, estimate
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.diffusion.spacing import Spacing, schedule_timesteps

STEPS = (1, 2, 4, 8)
"""Numbers of steps that weights are tuned for."""


def few_step_timesteps(schedule: NoiseSchedule, num_inference_steps: int, spacing: Spacing = "logsnr") -> list[int]:
    """Return the timesteps of ``schedule_timesteps`` for one step more, without the last: clean latents follow it.

    Raises:
        ValueError: for another number of steps than those of ``STEPS``, or an unknown spacing.
    """
    if num_inference_steps not in STEPS:
        raise ValueError(
            f"num_inference_steps must be one of {', '.join(map(str, STEPS))} with sampler distilled, received "
            f"{num_inference_steps!r}: choose one of them, or weights that are not tuned for few steps"
        )
    return schedule_timesteps(schedule, num_inference_steps + 1, spacing)[:-1]


def distilled_sample(
    denoiser: Denoiser,
    latents: Tensor,
    schedule: NoiseSchedule,
    num_inference_steps: int = 4,
    spacing: Spacing = "logsnr",
) -> Tensor:
    """Turn noise into clean latents by DDIM without fresh noise, in the steps that the network was tuned for.

    Args:
        denoiser: the network with its condition.
        latents: (B, C, h, w) of standard normal noise; their dtype is that of the sampler's arithmetic.
        schedule: the schedule that the network was trained with.
        num_inference_steps: that of the tuning, one of ``STEPS``.
        spacing: which timesteps are used, see ``few_step_timesteps``; that of the tuning.

    Returns:
        (B, C, h, w): the clean latents of the last estimate.

    Raises:
        ValueError: see ``few_step_timesteps``.
    """
    timesteps = few_step_timesteps(schedule, num_inference_steps, spacing)
    for timestep, following in pairwise(timesteps):
        clean, noise = estimate(denoiser, latents, schedule, timestep)
        latents = schedule.exact_signal[following] * clean + schedule.exact_sigma[following] * noise
    return estimate(denoiser, latents, schedule, timesteps[-1])[0]
