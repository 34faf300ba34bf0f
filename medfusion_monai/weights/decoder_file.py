"""Files of small decoders: safetensors whose header says which latents they decode."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

import medfusion_monai
from medfusion_monai.networks.autoencoder import LatentAutoencoder, decoder_names
from medfusion_monai.networks.described import DescriptionError, build, describe
from medfusion_monai.networks.small_decoder import SmallDecoder
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.runtime.memory_format import lay_out
from medfusion_monai.weights.places import STARTER
from medfusion_monai.weights.state_dict import load_weights, read_safetensors_metadata, save_safetensors

NAME = "small_decoder.safetensors"
"""Of the file beside a model's weights."""
METADATA_KEY = "small_decoder"
"""Key of the description in the file's header."""
FORMAT = 1
"""Version of the description; others are refused."""
TRAIN = "distil one by run train_small_decoder with configs/small_decoder.yaml, or leave decoder out"


def decoder_beside(model_file: str | Path) -> Path:
    """Return the small decoder of a model: beside starter weights if the bundle's own folder has none."""
    folder = Path(model_file).parent
    own = folder.parent / NAME
    return own if folder.name == STARTER and own.is_file() else folder / NAME


def latents_sha256(autoencoder: LatentAutoencoder, state: Mapping[str, Tensor] | None = None) -> str:
    """Return the SHA-256 of the weights that determine the latents: the encoder and the statistics of its latents.

    Parameters count as float16, so that weights exported in half precision are those of the training.

    Args:
        autoencoder: whose latents they are.
        state: its weights; None for those that it has.
    """
    values = autoencoder.state_dict() if state is None else state
    parameters = {name for name, _ in autoencoder.named_parameters()}
    digest = hashlib.sha256()
    for name in sorted(autoencoder.state_dict().keys() - decoder_names(autoencoder)):
        value = values[name].detach().cpu()
        value = (value.half() if name in parameters else value).contiguous()
        digest.update(repr((name, value.dtype, tuple(value.shape))).encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def save_small_decoder(
    decoder: SmallDecoder, path: str | Path, autoencoder: LatentAutoencoder, training: Mapping[str, Any]
) -> None:
    """Write a small decoder and its description.

    Args:
        decoder: the network.
        path: the file, ``.safetensors``.
        autoencoder: whose latents it decodes.
        training: what it was trained on, for how long, and from which weights.
    """
    info = {
        "format": FORMAT,
        "version": medfusion_monai.__version__,
        "network": describe(decoder),
        "latents_sha256": latents_sha256(autoencoder),
        "training": dict(training),
    }
    save_safetensors(decoder, path, {METADATA_KEY: json.dumps(info)})


def load_small_decoder(
    path: str | Path, autoencoder: LatentAutoencoder, state: Mapping[str, Tensor] | None = None
) -> SmallDecoder:
    """Load a small decoder of an autoencoder's latents, ready for evaluation.

    Args:
        path: the file.
        autoencoder: whose latents it shall decode.
        state: the autoencoder's weights; None for those that it has.

    Raises:
        WeightsError: if the file is missing or damaged, is not a small decoder, or decodes other latents.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"decoder {path} does not exist: {TRAIN}")
    info = _read_info(path)
    try:
        decoder = build(info["network"])
    except (DescriptionError, KeyError) as error:
        raise WeightsError(f"the header of {path} does not describe a small decoder: {error}") from error
    _refuse_other_latents(path, decoder, info, autoencoder, state)
    load_weights(decoder, path)
    decoder.sha256 = file_sha256(path)
    return lay_out(decoder.eval(), True)


def _read_info(path: Path) -> dict[str, Any]:
    header = read_safetensors_metadata(path).get(METADATA_KEY)
    try:
        info = json.loads(header or "null")
    except ValueError as error:
        raise WeightsError(f"the header of {path} cannot be read as JSON: {error}. Fetch the file again") from error
    if not isinstance(info, dict):
        raise WeightsError(f"{path} is not a small decoder: its header has no {METADATA_KEY}; {TRAIN}")
    if info.get("format") != FORMAT:
        raise WeightsError(
            f"{path} is of format {info.get('format')!r}; medfusion_monai {medfusion_monai.__version__} reads "
            f"{FORMAT}: install a newer version"
        )
    return info


def _refuse_other_latents(
    path: Path,
    decoder: Any,
    info: Mapping[str, Any],
    autoencoder: LatentAutoencoder,
    state: Mapping[str, Tensor] | None,
) -> None:
    if not isinstance(decoder, SmallDecoder):
        raise WeightsError(f"{path} is not a small decoder but a {type(decoder).__name__}: {TRAIN}")
    pairs = {
        "latent channels": (decoder.latent_channels, autoencoder.latent_channels),
        "image channels": (decoder.out_channels, autoencoder.in_channels),
        "reduction of height and width": (decoder.downsampling_factor, autoencoder.downsampling_factor),
    }
    problems = [f"{name} {own}, the model has {other}" for name, (own, other) in pairs.items() if own != other]
    if problems:
        raise WeightsError(
            f"decoder {path} does not fit the model: {'; '.join(problems)}. To have one that does, {TRAIN}"
        )
    own, found = latents_sha256(autoencoder, state), str(info.get("latents_sha256"))
    if own != found:
        raise WeightsError(
            f"decoder {path} decodes the latents of other weights: SHA-256 of their encoder {found[:12]}, of the "
            f"model's {own[:12]}. To have one that does, {TRAIN}"
        )
