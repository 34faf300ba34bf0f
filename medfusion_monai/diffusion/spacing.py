"""The timesteps at which a sampler with few steps calls the network."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.runtime.values import is_whole

Spacing = Literal["linspace", "quadratic", "logsnr", "karras"]
LEAST_SIGNAL = 0.005
"""Lower bound on the signal for ``logsnr`` and ``karras``, which keeps their curves finite."""


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


def schedule_timesteps(schedule: NoiseSchedule, num_inference_steps: int, spacing: Spacing = "linspace") -> list[int]:
    """Choose distinct timesteps in descending order from the last to 0, both included; a single step is the last.

    Args:
        schedule: the schedule that the network was trained with.
        num_inference_steps: from 1 to the schedule's timesteps.
        spacing: even in the timestep (``linspace``, as published), in its square root (``quadratic``, Song et al.
            2021), in the logarithm of the signal-to-noise ratio (``logsnr``, Lu et al. 2022), or in the seventh root of
            sigma over signal (``karras``, Karras et al. 2022, equation 5).

    Raises:
        ValueError: for a number of steps or a spacing out of range.
    """
    if spacing not in get_args(Spacing):
        raise ValueError(f"spacing must be one of {get_args(Spacing)}, received {spacing!r}")
    even = spaced_timesteps(num_inference_steps, schedule.num_train_timesteps)
    if spacing == "linspace" or num_inference_steps == 1:
        return even
    curves: dict[str, Callable[[float], float]] = {"logsnr": math.log, "karras": lambda ratio: ratio ** (1 / 7)}
    if spacing == "quadratic":
        values = [math.sqrt(timestep) for timestep in range(schedule.num_train_timesteps)]
    else:
        scales = zip(schedule.exact_signal, schedule.exact_sigma, strict=True)
        values = [curves[spacing](sigma / max(signal, LEAST_SIGNAL)) for signal, sigma in scales]
    gaps = num_inference_steps - 1
    wanted = [values[-1] + (values[0] - values[-1]) * step / gaps for step in range(num_inference_steps)]
    return _each_once([_nearest(values, value) for value in wanted], schedule.num_train_timesteps)


def _nearest(values: Sequence[float], wanted: float) -> int:
    """Return the index of the value nearest to ``wanted`` among ascending values."""
    after = min(max(bisect_left(values, wanted), 1), len(values) - 1)
    return after - 1 if wanted - values[after - 1] <= values[after] - wanted else after


def _each_once(timesteps: list[int], num_train_timesteps: int) -> list[int]:
    """Make non-increasing timesteps distinct by moving them as little as possible: up, or at the top down."""
    moved = [max(timestep, len(timesteps) - 1 - place) for place, timestep in enumerate(timesteps)]
    for place in range(len(moved) - 2, -1, -1):
        moved[place] = max(moved[place], moved[place + 1] + 1)
    return [min(timestep, num_train_timesteps - 1 - place) for place, timestep in enumerate(moved)]
