"""The three exported networks, each with names, shapes and value ranges of its inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medfusion_monai.losses.reconstruction import to_unit
from medfusion_monai.networks.autoencoder import LatentAutoencoder
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.networks.unet import NO_LABEL


class Encoder(nn.Module):
    """Images in, the posterior of their unit-variance latents out."""

    def __init__(self, autoencoder: LatentAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, C, 8h, 8w) in [0, 1] to mean and standard deviation of their latents, (B, L, h, w) each."""
        posterior = self.autoencoder.encode(image * 2.0 - 1.0)
        std = torch.exp(0.5 * posterior.logvar) / self.autoencoder.latent_std[:, None, None]
        return self.autoencoder.normalize(posterior.mode()), std


class Decoder(nn.Module):
    """Unit-variance latents in, images out."""

    def __init__(self, autoencoder: LatentAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: Tensor) -> Tensor:
        """Map latents (B, L, h, w) to images (B, C, 8h, 8w) in [0, 1]."""
        return to_unit(self.autoencoder.decode_stage_2_outputs(latents))


class Denoiser(nn.Module):
    """The UNet with timesteps and labels as plain inputs."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, noisy_latents: Tensor, timesteps: Tensor, class_labels: Tensor) -> Tensor:
        """Map latents (B, L, h, w), timesteps (B,) and labels (B,), -1 for none, to a prediction (B, L, h, w)."""
        return self.unet(noisy_latents, timesteps=timesteps, class_labels=class_labels)


@dataclass(frozen=True)
class Port:
    """An input or output of a network.

    Attributes:
        name: of the tensor.
        shape: numbers, or ``batch``, ``height`` and ``width`` (of the latents) and whole multiples: ``8*height``.
        dtype: ``float32`` or ``int64``.
        value_range: smallest and largest value; None if unbounded.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"
    value_range: tuple[int, int] | None = None

    def size(self, sides: dict[str, int]) -> list[int]:
        """Return the shape in numbers, given the sizes of ``batch``, ``height`` and ``width``."""
        return [side if isinstance(side, int) else multiple(side)[0] * sides[multiple(side)[1]] for side in self.shape]

    def draw(self, sides: dict[str, int], source: torch.Generator) -> Tensor:
        """Draw values to test the network with, standard normal if unbounded."""
        size = self.size(sides)
        if self.value_range is None:
            return torch.randn(size, generator=source)
        low, high = self.value_range
        if self.dtype == "int64":
            return torch.randint(low, high + 1, size, generator=source)
        return low + (high - low) * torch.rand(size, generator=source)


@dataclass(frozen=True)
class Part:
    """A network that is exported to its own file, with this name."""

    name: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def draw(self, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        """Draw inputs for a batch of latents of this height and width, the same at each call."""
        source = torch.Generator().manual_seed(0)
        return tuple(port.draw({"batch": batch, "height": height, "width": width}, source) for port in self.inputs)

    @torch.no_grad()
    def run(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        """Return the network's outputs in PyTorch."""
        outputs = self.module(*inputs)
        return list(outputs) if isinstance(outputs, tuple) else [outputs]


def multiple(side: str) -> tuple[int, str]:
    """Read ``8*height`` as 8 and ``height``, ``height`` as 1 and ``height``."""
    factor, _, name = side.rpartition("*")
    return int(factor or 1), name


def parts_of(network: Medfusion, num_classes: int, num_train_timesteps: int) -> list[Part]:
    """Return encoder, decoder and UNet of a network.

    Args:
        network: both stages.
        num_classes: labels are 0 to ``num_classes`` - 1, or -1 for none.
        num_train_timesteps: timesteps are 0 to ``num_train_timesteps`` - 1.
    """
    autoencoder = network.autoencoder
    factor, latent_shape = autoencoder.downsampling_factor, ("batch", autoencoder.latent_channels, "height", "width")
    image_shape = ("batch", autoencoder.in_channels, f"{factor}*height", f"{factor}*width")
    image, latents = Port("image", image_shape, value_range=(0, 1)), Port("latents", latent_shape)
    condition = (
        Port("timesteps", ("batch",), "int64", (0, num_train_timesteps - 1)),
        Port("class_labels", ("batch",), "int64", (NO_LABEL, num_classes - 1)),
    )
    return [
        Part("encoder", Encoder(autoencoder).eval(), (image,), (latents, Port("posterior_std", latent_shape))),
        Part("decoder", Decoder(autoencoder).eval(), (latents,), (image,)),
        Part(
            "unet",
            Denoiser(network.unet).eval(),
            (Port("noisy_latents", latent_shape), *condition),
            (Port("prediction", latent_shape),),
        ),
    ]
