"""LPIPS: perceptual distance between images, by the features of a classifier of photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from medfusion_monai.losses.perceptual import build_lpips
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.weights import pretrained

BACKBONES = {"alex": "alexnet", "vgg": "vgg16"}
"""The known weights file of each backbone, a key of ``pretrained.KNOWN``."""
SMALLEST_SIDE = {"alex": 31, "vgg": 16}
"""Smallest image side for which a backbone's last layer is not empty."""


def load_lpips(
    net: Literal["alex", "vgg"] = "alex", weights_file: str | Path | None = None, sha256: str | None = None
) -> nn.Module:
    """Load LPIPS 0.1 (Zhang et al. 2018) with the calibrated linear heads, which come with the lpips library.

    Args:
        net: backbone; the authors evaluate with ``alex``; ``vgg`` is slower.
        weights_file: torchvision's weights of the backbone; None takes the file of ``medfusion weights``.
        sha256: checksum of a file with other weights that the caller trusts; None accepts only the published weights.

    Returns:
        A frozen network for ``lpips_distance``.

    Raises:
        ValueError: for an unknown backbone, or weights that are missing, have another checksum or do not fit.
    """
    if net not in BACKBONES:
        raise ValueError(f"net is {net!r}: LPIPS is calibrated for {', '.join(BACKBONES)}")
    name = BACKBONES[net]
    if weights_file is None:
        weights_file = pretrained.find(name)
    else:
        expected = pretrained.KNOWN[name].sha256 if sha256 is None else sha256
        pretrained.check_sha256(weights_file, expected, pretrained.how_to_get(name))
    try:
        return build_lpips(net, weights_file, calibrated=True)
    except Exception as error:
        raise WeightsError(f"weights {weights_file} are not those of torchvision's {name}: {error}") from error


@torch.no_grad()
def lpips_distance(prediction: Tensor, image: Tensor, network: nn.Module) -> Tensor:
    """Measure LPIPS of pairs of images, 0 for equal ones.

    Args:
        prediction: images (B, C, H, W) in [0, 1], gray or RGB; gray counts as RGB with three equal channels.
        image: the images to compare with, of the same shape.
        network: from ``load_lpips``.

    Returns:
        Distances (B,).

    Raises:
        ValueError: if the shapes differ, or images are not gray or RGB, or too small for the network.
    """
    if prediction.shape != image.shape or image.ndim != 4 or image.shape[1] not in (1, 3):
        raise ValueError(
            f"prediction and image are {tuple(prediction.shape)} and {tuple(image.shape)}: both must be (B, C, H, W), "
            "with 1 or 3 channels"
        )
    smallest = SMALLEST_SIDE.get(str(network.pnet_type), 1)
    if min(image.shape[-2:]) < smallest:
        raise ValueError(
            f"images have {tuple(image.shape[-2:])} pixels: this LPIPS needs at least {smallest} pixels per side"
        )
    pair = [images.expand(-1, 3, -1, -1) * 2 - 1 for images in (prediction, image)]
    return network(*pair).flatten()
