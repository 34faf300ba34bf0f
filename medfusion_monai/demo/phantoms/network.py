"""A small network trained on phantoms, for metrics without pretrained weights in demonstrations and tests.

It learns the ground truth of newly drawn phantoms, and how much they were blurred and made noisy. The features of its
last hidden layer therefore differ for phantoms that are drawn differently, blurred or noisy.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medfusion_monai.demo.phantoms.families import FAMILIES
from medfusion_monai.evaluation.metrics.phantom_network import SIZE, PhantomNetwork
from medfusion_monai.weights.state_dict import save_weights

FIRST_SEED = 2**62
"""First seed of the training phantoms; ``prepare_phantoms`` uses far smaller seeds."""
MAX_NOISE = 0.1
"""Largest standard deviation of the noise, in units of the image."""


class _Drawn(NamedTuple):
    image: Tensor  # (N, C, H, W)
    values: Tensor  # (N, V), standardised
    label: Tensor  # (N,), float


def train_phantom_features(
    modality: str, path: str | Path, seed: int = 0, num_images: int = 2400, steps: int = 500, batch_size: int = 64
) -> PhantomNetwork:
    """Train the network on newly drawn phantoms, and write its weights, a plain state dict.

    The same arguments give the same file on a machine. It takes about 20 s on one free CPU thread.

    Args:
        modality: key of ``FAMILIES``.
        path: the file to write.
        seed: seed of phantoms, initial weights and batches.
        num_images: number of phantoms, half per class.
        steps: steps of Adam.
        batch_size: images per step.

    Returns:
        The trained network.

    Raises:
        ValueError: for an unknown modality.
    """
    if modality not in FAMILIES:
        raise ValueError(f"modality is {modality!r}: there are phantoms of {', '.join(FAMILIES)}")
    generator = torch.Generator().manual_seed(seed)
    drawn = _draw(modality, seed, num_images, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PhantomNetwork(drawn.image.shape[1], drawn.values.shape[1], modality)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(num_images, (batch_size,), generator=generator)
        values, logits = network.predict(drawn.image[rows])
        loss = F.mse_loss(values, drawn.values[rows])
        loss = loss + F.binary_cross_entropy_with_logits(logits, drawn.label[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    save_weights(network, path)
    return network.eval()


def _degrade(image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blur half of the images and add noise to half; return them and both levels, (B, 2) of about unit variance."""
    levels = torch.rand(len(image), 2, generator=generator)
    levels = levels * torch.randint(2, levels.shape, generator=generator)
    blur, noise = levels.T[..., None, None, None]
    blurred = F.avg_pool2d(F.pad(image, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    image = torch.lerp(image, blurred, blur) + MAX_NOISE * noise * torch.randn(image.shape, generator=generator)
    return image.clamp(0.0, 1.0), 3.0 * levels


def _draw(modality: str, seed: int, number: int, generator: torch.Generator) -> _Drawn:
    first = FIRST_SEED + seed * 2**32
    phantoms = [FAMILIES[modality].draw(first + index, index % 2, SIZE) for index in range(number)]
    truth = np.array([list(values.values()) for _, values in phantoms])
    truth = truth[:, truth.std(axis=0) > 1e-6]  # leave out values that are equal in all phantoms
    truth = (truth - truth.mean(axis=0)) / truth.std(axis=0)
    image, levels = _degrade(torch.from_numpy(np.stack([image for image, _ in phantoms])), generator)
    values = torch.cat([torch.from_numpy(truth).float(), levels], dim=1)
    return _Drawn(image, values, torch.arange(number).remainder(2).float())
