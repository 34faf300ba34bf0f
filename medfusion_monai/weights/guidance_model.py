"""Opens the weights that guide another model: an earlier or smaller version of it, on the same latents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from medfusion_monai.diffusion.guidance import Guide
from medfusion_monai.networks.described import DescriptionError, build
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.runtime.values import differences_of, flat_settings
from medfusion_monai.weights.decoder_file import latents_sha256
from medfusion_monai.weights.model_info import (
    model_info_path,
    require_denoiser,
    require_latents,
    require_model_info,
)
from medfusion_monai.weights.places import find_weights
from medfusion_monai.weights.state_dict import load_weights

NAME = "guide.safetensors"
"""Of the file beside a model's weights that guides them by default, where their description says so."""
SETTING = "guidance_model"
"""Key of the sampler's settings in a description that says so, by the name of that file."""
NO_GUIDE = "none"
"""In place of a path: guidance by the label, whatever guides the weights."""
CHOOSE = "Choose weights of the same training, or of one that continued from the same autoencoder.pt with the same keys"


def load_guide(
    path: str | Path, model_file: str | Path, info: Mapping[str, Any], autoencoder: Mapping[str, Tensor]
) -> Guide:
    """Load the UNet that guides a model; the arguments are those of ``read_guide``."""
    file = find_weights(path)
    network, _ = read_guide(file, model_file, info, autoencoder)
    return Guide(network.unet, file_sha256(file)).eval()


def read_guide(
    file: Path, model_file: str | Path, info: Mapping[str, Any], autoencoder: Mapping[str, Tensor]
) -> tuple[Medfusion, dict[str, Any]]:
    """Return the networks of a guide and their description.

    Args:
        file: its weights. Their decoder does not matter.
        model_file: the weights of the model.
        info: their description.
        autoencoder: the weights of the model's autoencoder.

    Raises:
        WeightsError: if they are missing, damaged or those of the model itself; or if they were trained on other
            latents, classes or image sizes, or with another noise schedule.
    """
    model_file = Path(model_file)
    if not file.is_file():
        raise WeightsError(f"guidance_model {file} does not exist. {CHOOSE}")
    if model_file.is_file() and file_sha256(file) == file_sha256(model_file):
        raise WeightsError(f"guidance_model {file} is the model itself, which cannot guide itself. {CHOOSE}")
    own = require_model_info(file)
    require_denoiser(file, own)
    if not info:
        raise WeightsError(f"guidance_model needs a model with a description: {model_info_path(model_file)} is missing")
    changes = differences_of(flat_settings(_shared(info)), flat_settings(_shared(own)))
    if changes:
        raise WeightsError(f"guidance_model {file} does not fit {model_file}: {'; '.join(changes)}. {CHOOSE}")
    network = load_described(file, own)
    if latents_sha256(network.autoencoder) != latents_sha256(network.autoencoder, autoencoder):
        raise WeightsError(f"guidance_model {file} was trained on other latents than {model_file}. {CHOOSE}")
    return network, own


def guide_beside(model_file: str | Path, info: Mapping[str, Any]) -> Path | None:
    """Return the file that guides a model by default; None if its description names none.

    Args:
        model_file: the weights of the model.
        info: their description.

    Raises:
        WeightsError: if it names anything but ``NAME``, or this does not lie beside the weights.
    """
    named = (info.get("sampler") or {}).get(SETTING)
    if named not in (None, NAME):
        raise WeightsError(
            f"{model_info_path(model_file)} names {SETTING} {named!r}: only {NAME} beside it can be named"
        )
    if named is None:
        return None
    file = Path(model_file).parent / NAME
    if not file.is_file():
        raise WeightsError(
            f"{file} does not exist, which guides {Path(model_file).name}: copy it from where these weights come from, "
            "or sample with guidance_scale 1"
        )
    return file


def without_guide(sampler: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a sampler for a place without the guide: those of no guidance, if they name one."""
    if sampler.get(SETTING) is None:
        return dict(sampler)
    unguided = {"guidance_scale": 1.0, "guidance_interval": None}
    return {name: unguided.get(name, value) for name, value in sampler.items() if name != SETTING}


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
