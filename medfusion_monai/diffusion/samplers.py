"""The samplers by name: pure functions of a denoiser, noise and a schedule, and their defaults."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from medfusion_monai.diffusion.ddim import ddim_sample
from medfusion_monai.diffusion.few_steps import distilled_sample, few_step_timesteps
from medfusion_monai.diffusion.multistep import dpm_solver_sample, unipc_sample
from medfusion_monai.diffusion.spacing import Spacing, schedule_timesteps


class Sampler(NamedTuple):
    """A sampler and its defaults.

    Args:
        sample: turns noise into clean latents, ``sample(denoiser, latents, schedule, num_inference_steps,
            spacing=...)``, and with fresh noise also ``eta=`` and ``draw_noise=``, like ``ddim_sample``.
        num_inference_steps: default number of UNet calls.
        spacing: default choice of timesteps.
        fresh_noise: whether it can add noise between steps.
        tuned: whether it is for weights that were tuned for it and for their number of steps (``train_few_steps``),
            and for no others. Guidance is part of them.
        timesteps: returns the timesteps of the UNet's calls, ``timesteps(schedule, num_inference_steps, spacing)``.
    """

    sample: Callable[..., Tensor]
    num_inference_steps: int
    spacing: Spacing
    fresh_noise: bool = False
    tuned: bool = False
    timesteps: Callable[..., list[int]] = schedule_timesteps


SAMPLERS = {
    "ddim": Sampler(ddim_sample, 150, "linspace", fresh_noise=True),  # as published
    # On chest images UniPC ends nearer to the exact solution than DDIM without fresh noise in 150 steps
    # (benchmarks/sampler_distance.py).
    "dpm_solver": Sampler(dpm_solver_sample, 30, "logsnr"),
    "unipc": Sampler(unipc_sample, 30, "logsnr"),
    "distilled": Sampler(distilled_sample, 4, "logsnr", tuned=True, timesteps=few_step_timesteps),
}
"""By the names used in configs, ``model.json`` and manifests. Add your own here."""
