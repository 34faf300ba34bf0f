"""The GAN as a bundle's ``network_def``: what samples, with the classes and the size of its images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from torch import Tensor, nn

from medfusion_monai.runtime.errors import WeightsError


class Gan(nn.Module):
    """A generator; ``model.pt`` of a GAN is its state dict.

    It meets the interface of ``Medfusion``; what needs latents or a noise schedule raises an error.

    Args:
        generator: a ``GanGenerator``, or another module called alike.
        class_names: of its labels, in label order.
        image_size: height and width of its images.
    """

    generator: Any
    has_latents = False

    def __init__(
        self, generator: nn.Module, class_names: Sequence[str] = (), image_size: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.generator = generator
        self.class_names = list(class_names)
        self.image_size = None if image_size is None else list(image_size)

    @property
    def main(self) -> nn.Module:
        """The network that takes most of the time of a sample."""
        return self.generator

    @property
    def image_channels(self) -> int:
        """1 (gray) or 3 (RGB)."""
        return self.generator.image_channels

    @property
    def autoencoder(self) -> NoReturn:
        """A GAN has none.

        Raises:
            WeightsError: always.
        """
        raise _needs_diffusion("no autoencoder")

    @property
    def unet(self) -> NoReturn:
        """A GAN has none.

        Raises:
            WeightsError: always.
        """
        raise _needs_diffusion("no UNet")

    def forward(self, noise: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Map noise (B, noise_channels) and labels (B,) to images (B, C, H, W), about in [-1, 1].

        Raises:
            WeightsError: without labels, as if it were an image to reconstruct.
        """
        if class_labels is None:
            raise _needs_diffusion("nothing that reconstructs images")
        return self.generator(noise, class_labels)


def _needs_diffusion(lacks: str) -> WeightsError:
    return WeightsError(
        f"the model is a GAN, which has {lacks}: it samples images of a class, and nothing else. Use the weights of a "
        "diffusion model (train_diffusion) to encode, edit or classify images, or as a start or guide"
    )
