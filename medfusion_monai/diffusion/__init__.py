"""Diffusion of latents: schedules, samplers, guidance, and the inferer that the bundles use."""

from medfusion_monai.diffusion.ddim import ddim_sample
from medfusion_monai.diffusion.guidance import guided_denoiser
from medfusion_monai.diffusion.inferer import LatentDiffusionSampler
from medfusion_monai.diffusion.multistep import dpm_solver_sample, unipc_sample
from medfusion_monai.diffusion.samplers import SAMPLERS
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.diffusion.spacing import schedule_timesteps, spaced_timesteps

__all__ = [
    "SAMPLERS",
    "LatentDiffusionSampler",
    "NoiseSchedule",
    "ddim_sample",
    "dpm_solver_sample",
    "guided_denoiser",
    "schedule_timesteps",
    "spaced_timesteps",
    "unipc_sample",
]
