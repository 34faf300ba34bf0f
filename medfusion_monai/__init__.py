"""Class-conditional latent diffusion of 2D medical images, as MONAI bundles."""

__version__ = "0.1.0"
