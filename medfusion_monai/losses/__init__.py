"""Losses of all phases."""

from medfusion_monai.losses.adversarial import AdversarialLoss
from medfusion_monai.losses.denoising import DiffusionLoss
from medfusion_monai.losses.distillation import DistillationLoss
from medfusion_monai.losses.feature_discriminator import FeatureDiscriminator
from medfusion_monai.losses.reconstruction import ReconstructionLoss, image_ssim, structural_similarity, to_unit

__all__ = [
    "AdversarialLoss",
    "DiffusionLoss",
    "DistillationLoss",
    "FeatureDiscriminator",
    "ReconstructionLoss",
    "image_ssim",
    "structural_similarity",
    "to_unit",
]
