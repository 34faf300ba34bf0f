"""LPIPS whose backbone comes from a local file; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import lpips
import torch
from torch import nn

VGG16_FILE = "vgg16-397923af.pth"
"""torchvision's name for its VGG-16 weights; the SHA-256 of the file begins with 397923af."""


def load_perceptual_loss(path: str | Path) -> nn.Module:
    """Make LPIPS on VGG-16 without linear calibration, as published, from torchvision's weights.

    On a machine with internet ``torchvision.models.vgg16(weights="IMAGENET1K_V1")`` puts the file
    ``vgg16-397923af.pth`` (528 MB) into ``~/.cache/torch/hub/checkpoints``; bring it in from there.

    Args:
        path: that file. Its tensors are read, nothing in it is executed.

    Returns:
        A frozen module that maps two batches (B, 3, H, W) in [-1, 1] to distances (B, 1, 1, 1).

    Raises:
        ValueError: if the file is missing or holds other weights.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"perceptual_weights_file {path} does not exist. Fetch torchvision's {VGG16_FILE} (its SHA-256 begins "
            "with 397923af) on a machine with internet and copy it there, or leave the option empty to train without"
        )
    loss = lpips.LPIPS(net="vgg", lpips=False, pretrained=False, pnet_rand=True, verbose=False)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, parameter in loss.net.named_parameters():  # slice1.0.weight is torchvision's features.0.weight
            parameter.data.copy_(state["features." + name.split(".", 1)[1]])
    except Exception as error:
        raise ValueError(f"perceptual_weights_file {path} holds no VGG-16 weights of torchvision: {error}") from error
    return loss.eval().requires_grad_(False)
