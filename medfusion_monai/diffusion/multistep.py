"""Second-order multistep samplers without fresh noise: DPM-Solver++ and UniPC."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from medfusion_monai.diffusion.denoiser import Denoiser, estimate
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.diffusion.spacing import Spacing, schedule_timesteps


def dpm_solver_sample(
    denoiser: Denoiser,
    latents: Tensor,
    schedule: NoiseSchedule,
    num_inference_steps: int = 30,
    spacing: Spacing = "logsnr",
    order: int = 2,
) -> Tensor:
    """Turn noise into clean latents by DPM-Solver++(2M), without fresh noise (Lu et al. 2022, algorithm 2).

    A step is exact for constant clean latents; the second order extrapolates their change over the previous step along
    log(signal / sigma). The first step has no previous one, and the last, to no noise, is infinitely long: both are of
    first order. So is the second step after a start without signal.

    Args:
        denoiser: the network with its condition.
        latents: (B, C, h, w) of standard normal noise; their dtype is that of the sampler's arithmetic.
        schedule: the schedule that the network was trained with.
        num_inference_steps: calls of the network, from 1 to the schedule's timesteps.
        spacing: which timesteps are used, see ``schedule_timesteps``.
        order: 2, or 1 for DDIM with eta 0.

    Returns:
        (B, C, h, w): the clean latents predicted at the last timestep.

    Raises:
        ValueError: for a number of steps, a spacing or an order out of range.
    """
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, received {order!r}")
    return _multistep(denoiser, latents, schedule, num_inference_steps, spacing, order, correct=False)


def unipc_sample(
    denoiser: Denoiser,
    latents: Tensor,
    schedule: NoiseSchedule,
    num_inference_steps: int = 30,
    spacing: Spacing = "logsnr",
) -> Tensor:
    """Turn noise into clean latents by UniPC-2 (Zhao et al. 2023, data prediction, B2), without fresh noise.

    Its predictor is DPM-Solver++(2M). The network's prediction at the end of a step then corrects that step before
    the next one: a smaller error without further calls.

    Args:
        denoiser: as for ``dpm_solver_sample``.
        latents: likewise.
        schedule: likewise.
        num_inference_steps: likewise.
        spacing: likewise.

    Returns:
        (B, C, h, w): the clean latents predicted at the last timestep.

    Raises:
        ValueError: for a number of steps or a spacing out of range.
    """
    return _multistep(denoiser, latents, schedule, num_inference_steps, spacing, order=2, correct=True)


class _Step(NamedTuple):
    """A step from one timestep to a lower one, as factors of the values at its start."""

    start: int
    end: int
    width: float  # of log(signal / sigma)
    keep: float  # of the noisy latents
    gain: float  # of the clean latents

    @classmethod
    def between(cls, schedule: NoiseSchedule, start: int, end: int) -> _Step:
        signal, sigma = schedule.exact_signal, schedule.exact_sigma
        keep = sigma[end] / sigma[start]
        width = _log_snr(schedule, end) - _log_snr(schedule, start)
        return cls(start, end, width, keep, signal[end] - keep * signal[start])


def _multistep(
    denoiser: Denoiser,
    latents: Tensor,
    schedule: NoiseSchedule,
    num_inference_steps: int,
    spacing: Spacing,
    order: int,
    correct: bool,
) -> Tensor:
    timesteps = schedule_timesteps(schedule, num_inference_steps, spacing)
    steps: list[_Step] = []
    started: list[Tensor] = []  # noisy latents at the starts of steps
    cleans: list[Tensor] = []  # estimates there
    for timestep, next_timestep in pairwise([*timesteps, -1]):
        clean, _ = estimate(denoiser, latents, schedule, timestep)
        if next_timestep < 0:
            return clean
        if correct and steps:
            latents = _corrected(steps[-2:], started[-1], cleans[-2:], clean)
        step = _Step.between(schedule, timestep, next_timestep)
        started, cleans, steps = [latents], [*cleans[-1:], clean], [*steps[-1:], step]
        ahead = clean
        if order == 2 and len(steps) == 2:
            ahead = clean + step.width / (2.0 * steps[0].width) * (clean - cleans[0])
        latents = step.keep * latents + step.gain * ahead
    raise AssertionError("unreachable: the last timestep returns")


def _corrected(steps: Sequence[_Step], noisy: Tensor, cleans: Sequence[Tensor], clean_at_end: Tensor) -> Tensor:
    """Repeat the last of one or two steps from its noisy latents, given the clean latents at its end."""
    step, clean = steps[-1], cleans[-1]
    change = 0.5 * (clean_at_end - clean)
    if len(steps) == 2:
        before, now = _corrector_factors(steps[0].width, step.width)
        change = now * (clean_at_end - clean) + before * (clean - cleans[0])
    return step.keep * noisy + step.gain * (clean + change)


def _corrector_factors(width_before: float, width: float) -> tuple[float, float]:
    """Factors of the change of the clean latents over the previous step and over this one (theorem 3.1, order 2)."""
    first = math.expm1(-width)
    second = -first / width - 1.0
    third = -second / width - 0.5
    b1, b2 = second / first, 2.0 * third / first
    r = width_before / width
    rho = (b1 - b2) / (1.0 + r)
    return rho / r, b1 - rho


def _log_snr(schedule: NoiseSchedule, timestep: int) -> float:
    """Half the logarithm of the signal-to-noise ratio, minus infinity without signal."""
    signal = schedule.exact_signal[timestep]
    return math.log(signal / schedule.exact_sigma[timestep]) if signal > 0.0 else -math.inf
