"""Trainers and what they are made of."""

from medfusion_monai.memory import BatchTooLargeError
from medfusion_monai.training.autoencoder_trainer import AutoencoderTrainer
from medfusion_monai.training.diffusion_step import DiffusionStep
from medfusion_monai.training.latent_encoding import (
    CachedLatents,
    cached_latents,
    diffusion_dataset,
    prepare_latents,
)
from medfusion_monai.training.latent_statistics import measure_latent_statistics
from medfusion_monai.training.learning_rate import warmup_decay
from medfusion_monai.training.prepare_batch import (
    AutoencoderPrepareBatch,
    DiffusionPrepareBatch,
    ReconstructionPrepareBatch,
    SamplingPrepareBatch,
)

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
