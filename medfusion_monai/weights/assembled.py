"""Puts an autoencoder and a UNet of different files together into one model."""

from __future__ import annotations

from pathlib import Path

import torch

from medfusion_monai.networks.described import DescriptionError, build
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.weights.model_info import model_info_path, require_model_info, write_model_info
from medfusion_monai.weights.places import find_weights
from medfusion_monai.weights.state_dict import fill_weights, load_weights, read_state, save_weights


def write_assembled(autoencoder_file: str | Path, model_file: str | Path, output: str | Path) -> Path:
    """Write ``model.pt`` and ``model.json`` of a model with the autoencoder of another file.

    Args:
        autoencoder_file: weights of an autoencoder whose encoder and latents are those of the model, as a training
            with ``frozen: encoder`` writes them.
        model_file: weights of the model, or a folder or bundle that contains them.
        output: folder of the new model.

    Returns:
        The place of the weights.

    Raises:
        WeightsError: if a file is missing or damaged, ``output`` has a model, or the UNet was trained on other latents
            than those of the autoencoder.
    """
    place = Path(output) / "model.pt"
    if place.exists():
        raise WeightsError(f"{place} exists: choose another folder")
    file = find_weights(model_file)
    info = require_model_info(file)
    try:
        network = Medfusion(**{name: build(part) for name, part in info["networks"].items()})
    except DescriptionError as error:
        raise WeightsError(f"{model_info_path(file)} does not describe a network: {error}") from error
    load_weights(network, file)
    autoencoder = network.autoencoder
    before = {name: value.clone() for name, value in autoencoder.state_dict().items()}
    fill_weights(autoencoder, read_state(autoencoder_file), Path(autoencoder_file))
    encoding = {id(value) for part in autoencoder.encoder_parts for value in part.parameters()}
    decoding = {name for name, value in autoencoder.named_parameters() if id(value) not in encoding}
    changed = [
        name
        for name, value in autoencoder.state_dict().items()
        if name not in decoding and not torch.equal(value, before[name])
    ]
    if changed:
        raise WeightsError(
            f"the UNet of {file} was trained on other latents than those of {autoencoder_file}: {len(changed)} values "
            f"of encoder and statistics differ ({', '.join(changed[:3])}). Take an autoencoder that was trained from "
            "these weights with --frozen encoder"
        )
    save_weights(network, place)
    write_model_info(place, info)
    return place
