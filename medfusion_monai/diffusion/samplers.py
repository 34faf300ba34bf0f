"""Samplers: pure functions of a denoiser, a schedule and a source of noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from medfusion_monai.checks import is_whole
from medfusion_monai.diffusion.schedule import NoiseSchedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""Maps noisy latents (B, C, h, w) and timesteps (B,) to the network's prediction."""


def spaced_timesteps(num_inference_steps: int, num_train_timesteps: int = 1000) -> list[int]:
    """Spread timesteps evenly from the last to 0, both included; a single step starts at the last.

    Raises:
        ValueError: if the number of steps is not a whole number between 1 and ``num_train_timesteps``.
    """
    if not is_whole(num_inference_steps) or not 1 <= num_inference_steps <= num_train_timesteps:
        raise ValueError(
            f"num_inference_steps must be a whole number between 1 and {num_train_timesteps}, "
            f"received {num_inference_steps!r}"
        )
    last = num_train_timesteps - 1
    if num_inference_steps == 1:
        return [last]
    return [last * step // (num_inference_steps - 1) for step in range(num_inference_steps - 1, -1, -1)]


def ddim_coefficients(alpha: float, alpha_next: float, eta: float) -> tuple[float, float, float]:
    """Factors of clean latents, estimated noise and fresh noise in one step (Song et al. 2021, equations 12 and 16).

    Args:
        alpha: cumulative product of the alphas at the present timestep.
        alpha_next: the same at the timestep that is stepped to.
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
) -> Tensor:
    """Turn noise into clean latents by DDIM, each step to the next timestep that is really used.

    Args:
        denoiser: the network with its condition.
        latents: (B, C, h, w) of standard normal noise.
        schedule: the schedule that the network was trained with.
        num_inference_steps: from 1 to the schedule's timesteps.
        eta: 0 for the deterministic sampler, 1 for the published stochastic one.
        draw_noise: gives standard normal noise of the latents' shape, once a step if eta > 0; the global
            random state if None.

    Returns:
        (B, C, h, w): the clean latents that are predicted at timestep 0.

    Raises:
        ValueError: for a number of steps or an eta out of range.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must be between 0 and 1, received {eta}")
    alphas = schedule.exact_alphas_cumprod
    timesteps = spaced_timesteps(num_inference_steps, schedule.num_train_timesteps)
    draw_noise = draw_noise or (lambda: torch.randn_like(latents))
    for timestep, next_timestep in pairwise([*timesteps, -1]):
        prediction = denoiser(latents, torch.full(latents.shape[:1], timestep, device=latents.device))
        clean, noise = schedule.clean_and_noise(prediction, latents, timestep)
        if next_timestep < 0:
            return clean
        clean_factor, noise_factor, sigma = ddim_coefficients(alphas[timestep], alphas[next_timestep], eta)
        latents = clean_factor * clean + noise_factor * noise
        if sigma > 0:
            latents = latents + sigma * draw_noise()
    raise AssertionError("unreachable: the last timestep returns")
