"""Mean and standard deviation of the latents of the training set, measured between the phases."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from medfusion_monai.networks.autoencoder import LatentAutoencoder
from medfusion_monai.training.prepare_batch import to_network

logger = logging.getLogger(__name__)


@torch.no_grad()
def measure_latent_statistics(
    autoencoder: LatentAutoencoder, batches: Iterable[dict[str, Any]], device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Measure mean and standard deviation per channel of latents drawn from the posteriors of all images.

    Args:
        autoencoder: the trained network.
        batches: dictionaries with ``image`` (B, C, H, W) in [0, 1].
        device: where to compute.

    Returns:
        Mean and standard deviation, (latent_channels,) each.

    Raises:
        ValueError: if there are no images.
    """
    autoencoder.eval()
    count = 0
    total = torch.zeros(autoencoder.latent_channels, dtype=torch.float64, device=device)
    squares = torch.zeros_like(total)
    for batch in batches:
        posterior = autoencoder.encode(to_network(batch["image"], torch.device(device)))
        mean, variance = posterior.mean.double(), posterior.logvar.double().exp()
        total += mean.sum(dim=(0, 2, 3))
        squares += (mean.square() + variance).sum(dim=(0, 2, 3))
        count += mean[:, 0].numel()
    if count == 0:
        raise ValueError("there are no images to measure the latents of: check the datalist")
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1e-12).sqrt()
    logger.info("latent mean %s, standard deviation %s", _rounded(mean), _rounded(std))
    return mean.float(), std.float()


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 3) for value in values.tolist()]
