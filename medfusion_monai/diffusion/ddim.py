"""DDIM, the published sampler (Song et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from medfusion_monai.diffusion.denoiser import Denoiser, estimate
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.diffusion.spacing import Spacing, schedule_timesteps


def ddim_coefficients(alpha: float, alpha_next: float, eta: float) -> tuple[float, float, float]:
    """Factors of clean latents, estimated noise and fresh noise in one step (Song et al. 2021, equations 12 and 16).

    Args:
        alpha: cumulative product of the alphas at the present timestep.
        alpha_next: the same at the next timestep.
        eta: 0 for no fresh noise, 1 for as much as in DDPM.
    """
    sigma = eta * math.sqrt((1.0 - alpha_next) / (1.0 - alpha) * (1.0 - alpha / alpha_next))
    return math.sqrt(alpha_next), math.sqrt(max(0.0, 1.0 - alpha_next - sigma**2)), sigma


def ddim_sample(
    denoiser: Denoiser,
    latents: Tensor,
    schedule: NoiseSchedule,
    num_inference_steps: int = 150,
    eta: float = 1.0,
    draw_noise: Callable[[], Tensor] | None = None,
    spacing: Spacing = "linspace",
) -> Tensor:
    """Turn noise into clean latents by DDIM, each step to the next timestep in use.

    Args:
        denoiser: the network with its condition.
        latents: (B, C, h, w) of standard normal noise; their dtype is that of the sampler's arithmetic.
        schedule: the schedule that the network was trained with.
        num_inference_steps: from 1 to the schedule's timesteps.
        eta: 0 for the deterministic sampler, 1 for the published stochastic one.
        draw_noise: returns standard normal noise of the latents' shape, called once per step if eta > 0; the global
            random state if None.
        spacing: which timesteps are used, see ``schedule_timesteps``; published ``linspace``.

    Returns:
        (B, C, h, w): the clean latents predicted at the last timestep.

    Raises:
        ValueError: for a number of steps, a spacing or an eta out of range, or an eta above 0 with a schedule that
            does not preserve the variance.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must be between 0 and 1, received {eta}")
    if eta > 0.0 and not schedule.variance_preserving:
        raise ValueError(f"eta must be 0 with schedule 'flow', which allows no fresh noise, received {eta}")
    timesteps = schedule_timesteps(schedule, num_inference_steps, spacing)
    draw_noise = draw_noise or (lambda: torch.randn_like(latents))
    for timestep, next_timestep in pairwise([*timesteps, -1]):
        clean, noise = estimate(denoiser, latents, schedule, timestep)
        if next_timestep < 0:
            return clean
        if eta == 0.0:
            latents = schedule.exact_signal[next_timestep] * clean + schedule.exact_sigma[next_timestep] * noise
            continue
        alphas = schedule.exact_alphas_cumprod
        clean_factor, noise_factor, sigma = ddim_coefficients(alphas[timestep], alphas[next_timestep], eta)
        latents = clean_factor * clean + noise_factor * noise + sigma * draw_noise()
    raise AssertionError("unreachable: the last timestep returns")
