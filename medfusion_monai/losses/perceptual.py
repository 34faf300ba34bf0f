"""Perceptual distances: LPIPS on VGG-16 from a file, or stages of EfficientNet-Lite0; nothing is downloaded."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import lpips
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfusion_monai.weights.efficientnet_lite import load_efficientnet_lite_stages
from medfusion_monai.weights.pretrained import KNOWN, how_to_get

VGG16_FILE = KNOWN["vgg16"].file
"""torchvision's name for its VGG-16 weights; the SHA-256 of the file begins with 397923af."""
STAGES = 3
"""Stages of EfficientNet-Lite0 that are compared: they reduce height and width 2, 4 and 8 times."""


class StageDistance(nn.Module):
    """Distance of images in the first stages of EfficientNet-Lite0, as LPIPS without calibration (Zhang et al. 2018).

    At each position of each stage both vectors of channels are scaled to length 1; squared differences are summed over
    channels and stages, and averaged over positions. The network is frozen; gradients reach the images.

    Raises:
        WeightsError: if the weights are missing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stages = load_efficientnet_lite_stages()[:STAGES]

    def forward(self, prediction: Tensor, image: Tensor) -> Tensor:
        """Map two batches (B, 3, H, W) in about [-1, 1] to distances (B, 1, 1, 1), at least 0."""
        distance = torch.zeros((len(image), 1, 1, 1), device=image.device)
        for predicted, expected in zip(self._features(prediction), self._features(image.detach()), strict=True):
            distance = distance + (predicted - expected).square().sum(1, keepdim=True).mean((2, 3), keepdim=True)
        return distance

    def _features(self, image: Tensor) -> Iterator[Tensor]:
        image = image.contiguous(memory_format=torch.channels_last)
        for stage in self.stages:
            image = stage(image)
            yield F.normalize(image, eps=1.0e-6)

    def train(self, mode: bool = True) -> StageDistance:
        """Stay in evaluation mode, whatever a trainer requests."""
        return super().train(False)


def load_perceptual_loss(path: str | Path) -> nn.Module:
    """Build LPIPS on VGG-16 without linear calibration, as published, from torchvision's weights.

    ``medfusion weights fetch vgg16`` fetches the file ``vgg16-397923af.pth`` (528 MiB) on a machine with internet;
    ``medfusion weights list`` prints its address.

    Args:
        path: that file. Only its tensors are read, nothing in it is executed.

    Returns:
        A frozen module that maps two batches (B, 3, H, W) in [-1, 1] to distances (B, 1, 1, 1).

    Raises:
        ValueError: if the file is missing or contains other weights.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"perceptual_weights_file {path} does not exist. Give torchvision's {VGG16_FILE}, or leave the option "
            f"empty to compare by EfficientNet-Lite0. {how_to_get('vgg16')}"
        )
    try:
        return build_lpips("vgg", path, calibrated=False)
    except Exception as error:
        raise ValueError(
            f"perceptual_weights_file {path} does not contain the VGG-16 weights of torchvision: {error}"
        ) from error


def build_lpips(net: Literal["alex", "vgg"], path: str | Path, calibrated: bool) -> nn.Module:
    """Build LPIPS (Zhang et al. 2018) on a backbone whose weights are those of torchvision's classifier in a file.

    Args:
        net: ``alex`` for AlexNet, ``vgg`` for VGG-16.
        path: the file; its classifier is not used, nothing in it is executed.
        calibrated: weight the channels by the linear heads of the lpips library; otherwise they count the same.

    Returns:
        A frozen module that maps two batches (B, 3, H, W) in [-1, 1] to distances (B, 1, 1, 1).

    Raises:
        Exception: the file cannot be read, or contains other weights.
    """
    with warnings.catch_warnings():  # lpips calls torchvision in a deprecated way
        warnings.simplefilter("ignore", UserWarning)
        network = lpips.LPIPS(net=net, lpips=calibrated, pretrained=calibrated, pnet_rand=True, verbose=False)
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, parameter in network.net.named_parameters():  # slice1.0.weight is torchvision's features.0.weight
        parameter.data.copy_(state["features." + name.split(".", 1)[1]])
    return network.eval().requires_grad_(False)
