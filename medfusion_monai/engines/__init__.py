"""Trainers and what they are made of."""

from medfusion_monai.engines.autoencoder_trainer import AutoencoderTrainer
from medfusion_monai.engines.latents import measure_latent_statistics, posterior_moments
from medfusion_monai.engines.lr import warmup_decay
from medfusion_monai.engines.prepare_batch import (
    AutoencoderPrepareBatch,
    DiffusionPrepareBatch,
    ReconstructionPrepareBatch,
    SamplingPrepareBatch,
)

__all__ = [
    "AutoencoderPrepareBatch",
    "AutoencoderTrainer",
    "DiffusionPrepareBatch",
    "ReconstructionPrepareBatch",
    "SamplingPrepareBatch",
    "measure_latent_statistics",
    "posterior_moments",
    "warmup_decay",
]
