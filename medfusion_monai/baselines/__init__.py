"""A class-conditional GAN, to compare the diffusion model with; ``training/train_gan.py`` trains it."""

from medfusion_monai.baselines.augmentation import Augmentation
from medfusion_monai.baselines.gan import Gan
from medfusion_monai.baselines.gan_networks import GanDiscriminator, GanGenerator, gan_widths
from medfusion_monai.baselines.gan_sampler import GanSampler
from medfusion_monai.baselines.relativistic import RelativisticLoss, penalty_range

__all__ = [
    "Augmentation",
    "Gan",
    "GanDiscriminator",
    "GanGenerator",
    "GanSampler",
    "RelativisticLoss",
    "gan_widths",
    "penalty_range",
]
