"""Diffusion of latents: schedules, samplers, guidance, and the inferer that the bundles use."""

from medfusion_monai.diffusion.guidance import guided_denoiser
from medfusion_monai.diffusion.inferer import LatentDiffusionSampler
from medfusion_monai.diffusion.randomness import derive_seed
from medfusion_monai.diffusion.samplers import ddim_sample, spaced_timesteps
from medfusion_monai.diffusion.schedule import NoiseSchedule

__all__ = [
    "LatentDiffusionSampler",
    "NoiseSchedule",
    "ddim_sample",
    "derive_seed",
    "guided_denoiser",
    "spaced_timesteps",
]
