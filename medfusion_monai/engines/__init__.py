"""Trainers and what they are made of."""

from medfusion_monai.engines.autoencoder_trainer import AutoencoderTrainer
from medfusion_monai.engines.diffusion_step import DiffusionStep
from medfusion_monai.engines.latent_encoding import (
    CachedLatents,
    cached_latents,
    diffusion_dataset,
    prepare_latents,
)
from medfusion_monai.engines.latents import measure_latent_statistics
from medfusion_monai.engines.lr import warmup_decay
from medfusion_monai.engines.prepare_batch import (
    AutoencoderPrepareBatch,
    DiffusionPrepareBatch,
    ReconstructionPrepareBatch,
    SamplingPrepareBatch,
)
from medfusion_monai.memory import BatchTooLargeError

__all__ = [
    "AutoencoderPrepareBatch",
    "AutoencoderTrainer",
    "BatchTooLargeError",
    "CachedLatents",
    "DiffusionPrepareBatch",
    "DiffusionStep",
    "ReconstructionPrepareBatch",
    "SamplingPrepareBatch",
    "cached_latents",
    "diffusion_dataset",
    "measure_latent_statistics",
    "prepare_latents",
    "warmup_decay",
]
