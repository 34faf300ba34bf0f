"""Networks of both stages: tensors to tensors, no files, no logging."""

from medfusion_monai.networks.autoencoder import Autoencoder, AutoencoderOutput, DiagonalGaussian, LatentAutoencoder
from medfusion_monai.networks.discriminator import PatchDiscriminator
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.networks.monai_adapters import (
    AutoencoderKL,
    DiffusionModelUNet,
    MonaiAutoencoder,
    MonaiUNet,
)
from medfusion_monai.networks.published import load_published
from medfusion_monai.networks.unet import NO_LABEL, UNet
from medfusion_monai.weights.state_dict import WeightsError

__all__ = [
    "NO_LABEL",
    "Autoencoder",
    "AutoencoderKL",
    "AutoencoderOutput",
    "DiagonalGaussian",
    "DiffusionModelUNet",
    "LatentAutoencoder",
    "Medfusion",
    "MonaiAutoencoder",
    "MonaiUNet",
    "PatchDiscriminator",
    "UNet",
    "WeightsError",
    "load_published",
]
