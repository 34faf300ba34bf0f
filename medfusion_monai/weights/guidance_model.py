"""Opens the weights that guide another model: an earlier or smaller version of it, on the same latents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medfusion_monai.diffusion.guidance import Guide
from medfusion_monai.networks.described import DescriptionError, build
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.runtime.values import differences_of, flat_settings
from medfusion_monai.weights.model_info import (
    model_info_path,
    require_denoiser,
    require_latents,
    require_model_info,
)
from medfusion_monai.weights.places import find_weights
from medfusion_monai.weights.state_dict import load_weights

CHOOSE = "Choose weights of the same training, or of one that continued from the same autoencoder.pt with the same keys"


def load_guide(
    path: str | Path, model_file: str | Path, info: Mapping[str, Any], autoencoder: Mapping[str, Tensor]
) -> Guide:
    """Load the UNet that guides a model.

    Args:
        path: its weights, or a folder or bundle that contains them.
        model_file: the weights of the model.
        info: their description.
        autoencoder: the weights of the model's autoencoder.

    Raises:
        WeightsError: if they are missing, damaged or those of the model itself; or if they were trained on other
            latents, classes or image sizes, or with another noise schedule.
    """
    file, model_file = find_weights(path), Path(model_file)
    if not file.is_file():
        raise WeightsError(f"guidance_model {file} does not exist. {CHOOSE}")
    if model_file.is_file() and file.samefile(model_file):
        raise WeightsError(f"guidance_model {file} is the model itself, which cannot guide itself. {CHOOSE}")
    own = require_model_info(file)
    require_denoiser(file, own)
    if not info:
        raise WeightsError(f"guidance_model needs a model with a description: {model_info_path(model_file)} is missing")
    changes = differences_of(flat_settings(_shared(info)), flat_settings(_shared(own)))
    if changes:
        raise WeightsError(f"guidance_model {file} does not fit {model_file}: {'; '.join(changes)}. {CHOOSE}")
    network = load_described(file, own)
    if any(not torch.equal(value, autoencoder[name]) for name, value in network.autoencoder.state_dict().items()):
        raise WeightsError(
            f"guidance_model {file} has other weights of the autoencoder than {model_file} (weights stored in float16 "
            f"differ from those in float32). {CHOOSE}"
        )
    return Guide(network.unet, file_sha256(file)).eval()


def _shared(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a description that a model and its guide have in common."""
    image, networks = info.get("image") or {}, info.get("networks") or {}
    return {
        "class_names": info.get("class_names"),
        "image_size": image.get("size"),
        "schedule": info.get("schedule"),
        "autoencoder": networks.get("autoencoder"),
    }


def load_described(file: Path, info: Mapping[str, Any]) -> Medfusion:
    """Return the networks that a description names, filled with the weights of its file.

    Raises:
        WeightsError: if it describes no networks, or the weights are missing, damaged or do not fit.
    """
    require_latents(file, info)
    try:
        parts = {name: build(part) for name, part in info["networks"].items()}
        network = Medfusion(parts["autoencoder"], parts["unet"])
    except (DescriptionError, KeyError) as error:
        raise WeightsError(f"{model_info_path(file)} does not describe a network: {error}") from error
    load_weights(network, file)
    return network
