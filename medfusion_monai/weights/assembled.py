"""Puts an autoencoder, a UNet or a guide of another file into a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from medfusion_monai.diffusion.guidance import check_guide_scale, checked_interval
from medfusion_monai.networks.autoencoder import decoder_names
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.weights.guidance_model import (
    NAME,
    SETTING,
    guide_beside,
    load_described,
    read_guide,
    without_guide,
)
from medfusion_monai.weights.model_info import (
    earlier_trainings,
    info_header,
    model_info_path,
    require_denoiser,
    require_model_info,
    write_model_info,
)
from medfusion_monai.weights.places import NAMES, weights_at
from medfusion_monai.weights.state_dict import check_listed, load_weights, save_safetensors, save_weights


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
    place = _free_place(output)
    file, decoder_file = weights_at(model_file), Path(autoencoder_file)
    info = require_model_info(file)
    network = load_described(file, info)
    autoencoder = network.autoencoder
    before = {name: value.clone() for name, value in autoencoder.state_dict().items()}
    load_weights(autoencoder, decoder_file)
    decoding = decoder_names(autoencoder)
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
    _add_training(info, "decoder", _training_of(decoder_file), decoder_file)
    guide = guide_beside(file, info)
    if guide is not None:
        check_listed(guide)
    save_weights(network, place)
    if guide is not None:
        shutil.copyfile(guide, place.parent / NAME)
    write_model_info(place, info)
    return place


def write_with_unet(unet_file: str | Path, model_file: str | Path, output: str | Path) -> Path:
    """Write ``model.pt`` and ``model.json`` of a model with the UNet of another file, as a federated server keeps it.

    Args:
        unet_file: state dict of a UNet that was trained on the latents of the model's autoencoder, alone or as
            ``model`` within another dictionary. That it was is not recorded in such a file and cannot be checked.
        model_file: weights of the model, as of any site, or a folder or bundle that contains them.
        output: folder of the new model.

    Returns:
        The place of the weights, without a guide, which was meant for another UNet; their description names neither
        images nor steps, as only the sites know theirs.

    Raises:
        WeightsError: if a file is missing or damaged, ``output`` has a model, or the UNet is another.
    """
    place = _free_place(output)
    file = weights_at(model_file)
    info = require_model_info(file)
    network = load_described(file, info)
    state = _state_of_unet(Path(unet_file))
    try:
        network.unet.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"weights {unet_file} do not fit the UNet of {file}: {error}") from error
    info["training"], info["class_shares"], info["sampler"] = {}, None, without_guide(info["sampler"])
    save_weights(network, place)
    write_model_info(place, info)
    return place


def write_guided(
    guide_file: str | Path,
    model_file: str | Path,
    output: str | Path,
    guidance_scale: float,
    guidance_interval: Sequence[float] | None = None,
) -> Path:
    """Write ``model.pt``, ``model.json`` and ``guide.safetensors`` of a model that is guided by other weights.

    Samples of these weights move away from what the guide predicts (see ``autoguided_denoiser``) wherever they are
    used, unless another guidance is chosen.

    Args:
        guide_file: weights of a worse version of the model, as of an earlier step or a smaller UNet, trained on the
            same latents; or a folder that contains them.
        model_file: weights of the model, or a folder or bundle that contains them.
        output: folder of the new model.
        guidance_scale: of the guide, above 1.
        guidance_interval: noise levels ``[low, high]``, as sigma / signal, that are guided; None for all.

    Returns:
        The place of the weights.

    Raises:
        WeightsError: if a file is missing or damaged, ``output`` has a model, the guide does not fit, or the model is
            tuned for few steps.
        ValueError: for a scale that is not a number above 1, or an interval that is not two noise levels.
    """
    check_guide_scale(guidance_scale)
    interval = checked_interval(guidance_interval)
    place = _free_place(output)
    file, guide_file = weights_at(model_file), weights_at(guide_file)
    info = require_model_info(file)
    require_denoiser(file, info)
    network = load_described(file, info)
    guide, guide_info = read_guide(guide_file, file, info, network.autoencoder.state_dict())
    chosen = {"guidance_scale": float(guidance_scale), "guidance_interval": interval, "negative_label": None}
    info["sampler"] = {**info["sampler"], **chosen, SETTING: NAME}
    _add_training(info, "guide", guide_info.get("training"), guide_file)
    save_guide(guide, guide_info, place.parent)
    save_weights(network, place)
    write_model_info(place, info)
    return place


def save_guide(network: Medfusion, info: Mapping[str, Any], folder: Path, half: bool = False) -> Path:
    """Write the networks of a guide, with their description in the header, into the folder of a model's weights."""
    own = {**info, "sampler": without_guide(info["sampler"])}  # a guide of the guide stays where it is
    save_safetensors(network, folder / NAME, info_header(own), half)
    return folder / NAME


def _add_training(info: dict[str, Any], name: str, training: Any, file: Path) -> None:
    """Add what is known of another training, whose weights are now part of a model, to the model's description."""
    started = info.get("training") or {}
    other = {**(training or {}), "weights_sha256": file_sha256(file)}
    info["training"] = started | earlier_trainings({**started, name: other})


def _free_place(output: str | Path) -> Path:
    place = Path(output) / NAMES[0]
    there = [name for name in (*NAMES, model_info_path(place).name, NAME) if (place.parent / name).exists()]
    if there:
        raise WeightsError(f"{place.parent / there[0]} exists: choose another folder")
    return place


def _state_of_unet(path: Path) -> dict[str, torch.Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(f"weights {path} cannot be read ({error}): name the file of a server") from error
    state = found.get("model", found) if isinstance(found, dict) else None
    if not isinstance(state, dict) or not state:
        raise WeightsError(f"weights {path} are not a state dict: name the file of a server")
    tensors = {str(name): torch.as_tensor(value) for name, value in state.items()}
    if not all(bool(value.isfinite().all()) for value in tensors.values()):
        raise WeightsError(f"weights {path} have values that are not finite: choose those of another round")
    return tensors


def _training_of(file: Path) -> dict[str, Any]:
    """Return what lies beside a decoder about its training; nothing if nothing does."""
    path = model_info_path(file)
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["training"]) if path.is_file() else {}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise WeightsError(f"{path} is not a description of a training: fetch it again") from error
