"""Training; ``train_*.py`` hold a phase each, from top to bottom."""

from medfusion_monai.runtime.distributed import default_device
from medfusion_monai.runtime.values import epochs
from medfusion_monai.training.autoencoder_step import AutoencoderTrainer
from medfusion_monai.training.diffusion_step import DiffusionStep
from medfusion_monai.training.gan_step import GanTrainer
from medfusion_monai.training.latent_dataset import LatentDataset
from medfusion_monai.training.latent_encoding import cached_latents
from medfusion_monai.training.latent_statistics import measure_latent_statistics
from medfusion_monai.training.learning_rate import Adam, AdamW, GanAdam, warmup_decay
from medfusion_monai.training.prepare_batch import (
    AutoencoderPrepareBatch,
    DiffusionPrepareBatch,
    DistillationPrepareBatch,
    GanPrepareBatch,
    ReconstructionPrepareBatch,
    SamplingPrepareBatch,
)
from medfusion_monai.training.pretrained_start import PretrainedStart
from medfusion_monai.training.run import TrainingRun
from medfusion_monai.training.train_autoencoder import AutoencoderTraining
from medfusion_monai.training.train_diffusion import DiffusionTraining
from medfusion_monai.training.train_few_steps import FewStepTraining
from medfusion_monai.training.train_gan import GanTraining, refuse_phase
from medfusion_monai.training.train_small_decoder import SmallDecoderTraining
from medfusion_monai.training.training_images import TrainingImages

__all__ = [
    "Adam",
    "AdamW",
    "AutoencoderPrepareBatch",
    "AutoencoderTrainer",
    "AutoencoderTraining",
    "DiffusionPrepareBatch",
    "DiffusionStep",
    "DiffusionTraining",
    "DistillationPrepareBatch",
    "FewStepTraining",
    "GanAdam",
    "GanPrepareBatch",
    "GanTrainer",
    "GanTraining",
    "LatentDataset",
    "PretrainedStart",
    "ReconstructionPrepareBatch",
    "SamplingPrepareBatch",
    "SmallDecoderTraining",
    "TrainingImages",
    "TrainingRun",
    "cached_latents",
    "default_device",
    "epochs",
    "measure_latent_statistics",
    "refuse_phase",
    "warmup_decay",
]
