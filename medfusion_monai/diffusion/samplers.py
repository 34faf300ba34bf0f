"""The samplers by name: pure functions of a denoiser, noise and a schedule, and their defaults."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from medfusion_monai.diffusion.ddim import ddim_sample
from medfusion_monai.diffusion.multistep import dpm_solver_sample, unipc_sample
from medfusion_monai.diffusion.spacing import Spacing


class Sampler(NamedTuple):
    """A sampler and its defaults.

    Args:
        sample: turns noise into clean latents, ``sample(denoiser, latents, schedule, num_inference_steps,
            spacing=...)``, and with fresh noise also ``eta=`` and ``draw_noise=``, like ``ddim_sample``.
        num_inference_steps: default number of UNet calls.
        spacing: default choice of timesteps.
        fresh_noise: whether it can add noise between steps.
    """

    sample: Callable[..., Tensor]
    num_inference_steps: int
    spacing: Spacing
    fresh_noise: bool = False


SAMPLERS = {
    "ddim": Sampler(ddim_sample, 150, "linspace", fresh_noise=True),  # as published
    # On chest images UniPC ends nearer to the exact solution than DDIM without fresh noise in 150 steps
    # (benchmarks/sampler_distance.py).
    "dpm_solver": Sampler(dpm_solver_sample, 30, "logsnr"),
    "unipc": Sampler(unipc_sample, 30, "logsnr"),
}
"""By the names used in configs, ``model.json`` and manifests. Add your own here."""
