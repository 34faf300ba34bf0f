"""Losses of phase one; phase two uses PyTorch's own."""

from medfusion_monai.losses.adversarial import AdversarialLoss
from medfusion_monai.losses.reconstruction import ReconstructionLoss, image_ssim, structural_similarity, to_unit

__all__ = ["AdversarialLoss", "ReconstructionLoss", "image_ssim", "structural_similarity", "to_unit"]
