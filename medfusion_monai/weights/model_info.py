"""The description of weights, in ``model.json`` beside them or in the header of a safetensors file.

It contains all that is needed to use them: networks with every argument, noise schedule, sampler, class names, form of
the images, and what they were trained on and for how long. It is plain data; nothing in it is imported or executed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

import medfusion_monai
from medfusion_monai.diffusion.samplers import SAMPLERS
from medfusion_monai.networks.described import describe
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.files import renamed_when_whole
from medfusion_monai.weights.checksums import forget_checksum
from medfusion_monai.weights.state_dict import check_listed, read_safetensors_metadata

if TYPE_CHECKING:
    from medfusion_monai.baselines.gan import Gan
    from medfusion_monai.networks.medfusion import Medfusion

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the description; later ones are refused."""

METADATA_KEY = "model"
"""Key of the same JSON in the header of a safetensors file."""

MEND = "Fetch it again, or copy it from the training that wrote the weights"

PARTS: dict[str, type] = {"class_names": list, "image": dict, "networks": dict, "schedule": dict, "sampler": dict}
"""Required entries of a description."""

PLACES: dict[str, tuple[str, ...]] = {
    "class_names": ("class_names",),
    "image_size": ("image", "size"),
    "image_channels": ("image", "channels"),
    "latent_channels": ("networks", "autoencoder", "latent_channels"),
    "autoencoder_channels": ("networks", "autoencoder", "channels"),
    "unet_channels": ("networks", "unet", "channels"),
    "unet_embedding_channels": ("networks", "unet", "embedding_channels"),
    "unet_norm_groups": ("networks", "unet", "norm_groups"),
    "unet_attention": ("networks", "unet", "attention"),
    "noise_schedule": ("schedule", "schedule"),
    "zero_terminal_snr": ("schedule", "zero_terminal_snr"),
    "prediction_type": ("schedule", "prediction_type"),
}
"""Where a description stores the settings that configs have under these names."""


def describe_model(
    network: Medfusion | Gan,
    schedule: nn.Module | None,
    sampler: Mapping[str, Any],
    image: Mapping[str, Any],
    training: Mapping[str, Any],
    class_shares: list[float] | None = None,
) -> dict[str, Any]:
    """Return the description of a trained model.

    Args:
        network: all its networks, with class names and image size.
        schedule: its noise schedule; None for a model without one.
        sampler: its default settings of ``LatentDiffusionSampler``, or those of another sampler.
        image: how its image files are read: ``resize_mode``, ``dicom_modalities``.
        training: what it was trained on and for how long.
        class_shares: of the classes among the training images, in label order.
    """
    form = {"size": network.image_size, "channels": network.image_channels, "range": [0.0, 1.0], **image}
    return {
        "format": FORMAT,
        "version": medfusion_monai.__version__,
        "class_names": network.class_names,
        "class_shares": class_shares,
        "image": form,
        "networks": {name: describe(part) for name, part in network.named_children()},
        **({} if schedule is None else {"schedule": describe(schedule)}),
        "sampler": dict(sampler),
        "training": dict(training),
    }


EARLIER = ("started_from", "decoder", "guide")
"""Trainings that a description names beside its own: of the weights it started from, of another decoder, of a guide."""


def earlier_trainings(training: Any) -> dict[str, Any]:
    """Return what a description of a training says of those before it, with only known keys."""
    found = {}
    for name in EARLIER:
        part = training.get(name) if isinstance(training, Mapping) else None
        if isinstance(part, Mapping):
            kept = {key: part[key] for key in ("weights_sha256", "images", "image_count") if key in part}
            found[name] = kept | earlier_trainings(part)
    return found


def model_info_path(path: str | Path) -> Path:
    """Return the path of the description of the weights at ``path``."""
    return Path(path).with_suffix(".json")


def write_model_info(path: str | Path, info: Mapping[str, Any]) -> None:
    """Write the description of the weights at ``path`` beside them."""
    file = model_info_path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    with renamed_when_whole(file) as partial:
        partial.write_text(model_info_text(info), encoding="utf-8")
        forget_checksum(file)


def mark_finished(path: str | Path) -> None:
    """State in the description of the weights at ``path`` that their training has come to its end."""
    info = require_model_info(path)
    if not info["training"].get("finished"):
        info["training"]["finished"] = True
        write_model_info(path, info)


def model_info_text(info: Mapping[str, Any]) -> str:
    """Return a description as the text of ``model.json``."""
    return json.dumps(dict(info), indent=1, ensure_ascii=False) + "\n"


def info_header(info: Mapping[str, Any]) -> dict[str, str]:
    """Return a description as the texts of a safetensors file's header."""
    return {METADATA_KEY: json.dumps(dict(info), ensure_ascii=False)}


def read_model_info(path: str | Path) -> dict[str, Any] | None:
    """Read the description of the weights at ``path``, or None if there is none.

    It is in the file beside them, and in the header of a safetensors file.

    Raises:
        WeightsError: if both exist and differ, or if the file is not a JSON object, has a later version, or differs
            from the checksum in ``checksums.sha256`` beside it.
    """
    file, header = model_info_path(path), read_safetensors_metadata(path).get(METADATA_KEY)
    own = None if header is None else _object(header, Path(path))
    if not file.is_file() or (own is not None and Path(path).with_suffix(".pt").is_file()):  # the file is about the .pt
        return own
    check_listed(file)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{file} cannot be read as JSON: {error}. {MEND}") from error
    beside = _object(text, file)
    if own is not None and own != beside:
        raise WeightsError(f"{file} and the header of {path} describe different weights: delete the one that is wrong")
    return beside


def require_model_info(path: str | Path) -> dict[str, Any]:
    """Read the description of the weights at ``path``, which must exist.

    Raises:
        WeightsError: if it does not, or as in ``read_model_info``.
    """
    info = read_model_info(path)
    if info is None:
        raise WeightsError(
            f"weights {path} have no description: {model_info_path(path)} is missing. Copy the file that was written "
            "with them. A config may instead give network_def, class_names, image_size, image_channels and "
            "prediction_type"
        )
    needed = {name: kind for name, kind in PARTS.items() if name != "schedule" or has_latents(info)}
    missing = [name for name, kind in needed.items() if not isinstance(info.get(name), kind)]
    if missing:
        raise WeightsError(f"{model_info_path(path)} has no {', '.join(missing)}. {MEND}")
    return info


def has_latents(info: Mapping[str, Any]) -> bool:
    """Return whether a description is of a diffusion model, with latents and a noise schedule, not of a GAN."""
    networks = info.get("networks")
    return not (isinstance(networks, Mapping) and "generator" in networks)


def require_latents(path: str | Path, info: Mapping[str, Any]) -> None:
    """Raise a WeightsError if a description is of a GAN."""
    if not has_latents(info):
        raise WeightsError(
            f"weights {path} are those of a GAN, which has no autoencoder, UNet or noise schedule: choose the weights "
            "of a diffusion model (train_diffusion)"
        )


def is_tuned(info: Mapping[str, Any]) -> bool:
    """Return whether a description is of a model that is tuned for few steps, whose UNet no longer removes noise."""
    sampler = info.get("sampler")
    known = SAMPLERS.get(str(sampler.get("sampler"))) if isinstance(sampler, Mapping) else None
    return known is not None and known.tuned


def require_denoiser(path: str | Path, info: Mapping[str, Any]) -> None:
    """Raise a WeightsError unless a description is of a diffusion model as phase two leaves it."""
    require_latents(path, info)
    if is_tuned(info):
        raise WeightsError(
            f"weights {path} are tuned for few steps (train_few_steps): they sample, but no longer remove the noise of "
            "one level, as edits, guidance and further training need it. Choose the weights of phase two that they "
            "were tuned from"
        )


DIFFUSION, GAN, FEW_STEPS = "a diffusion model", "a GAN", "a model for few steps"


def kind_of(info: Mapping[str, Any]) -> str:
    """Return what kind of model a description is of, in words."""
    return GAN if not has_latents(info) else FEW_STEPS if is_tuned(info) else DIFFUSION


def refuse_contradictions(path: str | Path, info: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Compare the values given by a user with the description of the weights.

    Another ``image_size`` only causes a warning: the networks accept any.

    Args:
        path: of the weights.
        info: their description.
        given: values by the names of ``PLACES``; None if not given.

    Raises:
        WeightsError: with each key that differs, and both values.
    """
    _refuse_unused(path, info, given)
    wanted = json.loads(json.dumps({name: value for name, value in given.items() if value is not None}))
    found = {name: found_at(info, name) for name in wanted}
    differing = [name for name, value in wanted.items() if found[name] is not None and found[name] != value]
    if "image_size" in differing:
        logger.warning(
            "the weights were trained with image_size %s, this run has %s: images of another size look worse",
            found["image_size"],
            wanted["image_size"],
        )
        differing.remove("image_size")
    if differing:
        words = "; ".join(f"{name} {found[name]}, this run has {wanted[name]}" for name in differing)
        raise WeightsError(
            f"weights {path} were trained with {words}: leave out what the weights define themselves, or choose "
            "other weights"
        )


def _refuse_unused(path: str | Path, info: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise a WeightsError for values of parts, as a UNet, that the weights do not have."""
    if not info:  # the config defines everything itself
        return
    parts = {*info["networks"], *(["schedule"] if has_latents(info) else [])}
    unused = [
        name
        for name, place in PLACES.items()
        if given.get(name) is not None and place[0] in ("networks", "schedule") and place[-2] not in parts
    ]
    if unused:
        raise WeightsError(
            f"weights {path} have only these networks: {', '.join(info['networks'])}. Leave out {', '.join(unused)}"
        )


def found_at(info: Mapping[str, Any], name: str) -> Any:
    """Return the value of a name of ``PLACES`` in a description, or None."""
    value: Any = info
    for key in PLACES[name]:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _object(text: str, file: Path) -> dict[str, Any]:
    try:
        info = json.loads(text)
    except ValueError as error:
        raise WeightsError(f"{file} cannot be read as JSON: {error}. {MEND}") from error
    if not isinstance(info, dict):
        raise WeightsError(f"{file} is not a JSON object. {MEND}")
    version = info.get("format", FORMAT)
    if not isinstance(version, int) or version > FORMAT:
        raise WeightsError(
            f"{file} is of format {version!r}; medfusion_monai {medfusion_monai.__version__} reads up to {FORMAT}: "
            "install a newer version"
        )
    return info
