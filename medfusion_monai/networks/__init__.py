"""Networks of both stages: tensors to tensors, no files, no logging."""

from medfusion_monai.networks.autoencoder import Autoencoder, AutoencoderOutput, DiagonalGaussian, LatentAutoencoder
from medfusion_monai.networks.discriminator import PatchDiscriminator
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.networks.monai_adapters import AutoencoderKL, DiffusionModelUNet, MonaiAutoencoder, MonaiUNet
from medfusion_monai.networks.small_decoder import SmallDecoder
from medfusion_monai.networks.unet import NO_LABEL, UNet

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
    "SmallDecoder",
    "UNet",
]
