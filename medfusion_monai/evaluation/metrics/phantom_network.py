"""A network trained on phantoms, whose features replace those of pretrained weights in demonstrations.

It is trained by ``demo.phantoms.network``.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.weights.state_dict import read_state

DIMENSIONS = 64


SIZE = 64
"""Height and width that images are resized to."""


DETAIL_GAIN = 20.0
"""Scales absolute differences from the surroundings to about the range of the image."""


class PhantomNetwork(nn.Module):
    """Strided convolutions to 64 features, and a linear layer that predicts the parameters of a phantom.

    Args:
        channels: of the images.
        num_values: numbers to predict besides the label.
        modality: key of ``FAMILIES``; stored with the weights.
    """

    modality: Tensor

    def __init__(self, channels: int, num_values: int, modality: str) -> None:
        super().__init__()
        widths = (channels + 1, 16, 32, 64, 64)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.SiLU()]
        side = SIZE // 2 ** (len(widths) - 1)
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * side**2, DIMENSIONS), nn.SiLU())
        self.head = nn.Linear(DIMENSIONS, num_values + 1)
        self.register_buffer("modality", torch.tensor(list(modality.encode()), dtype=torch.uint8))

    @property
    def modality_name(self) -> str:
        """Key of ``FAMILIES`` that the network was trained on."""
        return bytes(self.modality.tolist()).decode()

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return int(self.get_parameter("body.0.weight").shape[1]) - 1

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [0, 1] to features (B, 64)."""
        if image.shape[-2:] != (SIZE, SIZE):
            image = F.interpolate(image, size=(SIZE, SIZE), mode="bilinear", antialias=True)
        # Strided convolutions hardly register fine grain, so it gets its own channel.
        smooth = F.avg_pool2d(image, 3, stride=1, padding=1, count_include_pad=False)
        detail = (image - smooth).abs().mean(dim=1, keepdim=True)
        return self.body(torch.cat([image * 2 - 1, DETAIL_GAIN * detail], dim=1))

    def predict(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values (B, num_values) of images, the standardised truth first, and the logits (B,) of label 1."""
        outputs = self.head(self(image))
        return outputs[:, :-1], outputs[:, -1]


def load_phantom_network(path: str | Path) -> PhantomNetwork:
    """Load what ``train_phantom_features`` wrote; nothing in the file is executed.

    Raises:
        WeightsError: if the file is missing or contains something else.
    """
    state = read_state(path)
    try:
        modality = bytes(state["modality"].tolist()).decode()
        network = PhantomNetwork(state["body.0.weight"].shape[1] - 1, len(state["head.bias"]) - 1, modality)
        network.load_state_dict(state)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"weights {path} are not those of phantom features: write them with train_phantom_features"
        ) from error
    return network.eval().requires_grad_(False)
