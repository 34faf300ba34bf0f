"""Weights and descriptions of networks that this package did not train."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from medfusion_monai.diffusion.inferer import LatentDiffusionSampler
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.networks.autoencoder import Autoencoder
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.networks.unet import UNet
from medfusion_monai.weights.model_info import describe_model, write_model_info
from medfusion_monai.weights.state_dict import save_weights


def save_model(network: Medfusion, path: str | Path, sampler: LatentDiffusionSampler) -> None:
    """Write weights that were not trained with this package, and their description, as a training would.

    Args:
        network: both stages, with ``class_names`` and ``image_size``.
        path: the weights file; ``model.json`` is written beside it.
        sampler: how the model is sampled by default; its schedule is the one that the UNet was trained with.

    Raises:
        ValueError: if the network has no ``class_names`` or ``image_size``.

    Example:
        >>> network = load_published("diffusion.ckpt")  # doctest: +SKIP
        >>> network.class_names, network.image_size = ["no_cardiomegaly", "cardiomegaly"], [256, 256]  # doctest: +SKIP
        >>> save_model(network, "models/model.pt", LatentDiffusionSampler(NoiseSchedule()))  # doctest: +SKIP
    """
    if not network.class_names or network.image_size is None:
        raise ValueError("the network has no class_names or no image_size: set both")
    save_weights(network, path)
    write_model_info(path, describe_model(network, sampler.schedule, sampler.settings(), {}, {}))


def untrained_info(
    image_channels: int, class_names: Sequence[str], image_size: Sequence[int] = (256, 256), latent_channels: int = 8
) -> dict[str, Any]:
    """Return the description of the published networks without weights."""
    with torch.device("meta"):
        parts = Autoencoder(image_channels, latent_channels), UNet(latent_channels, num_classes=len(class_names))
    schedule = NoiseSchedule(prediction_type="v_prediction")
    settings = LatentDiffusionSampler(schedule, num_inference_steps=30, spacing="logsnr").settings()
    return describe_model(Medfusion(*parts, class_names, image_size), schedule, settings, {}, {})
