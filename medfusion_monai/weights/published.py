"""Reads checkpoints of the published Medfusion code into our networks, without running code that is pickled in them."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.networks.autoencoder import Autoencoder
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.networks.unet import UNet
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.weights.lightning_file import read_state_dict

logger = logging.getLogger(__name__)

Network = TypeVar("Network", Autoencoder, UNet)
Weights = Mapping[str, Tensor]

FOR_TRAINING = re.compile(r"(^|\.)(perceiver|discriminator|outc_ver\.[1-9]\d*)\.")
"""Published weights that are only needed for training, among them heads below half resolution."""

BLOCK_PARTS = {
    "first.conv": "block_seq.0.basic_block.conv",
    "first.norm": "block_seq.0.basic_block.norm",
    "first.skip": "block_seq.0.conv_res",
    "second.conv": "block_seq.1.basic_block.conv",
    "second.norm": "block_seq.1.basic_block.norm",
    "embed.1": "local_embedder.1",
}
"""Layers of a residual block: ours to published."""


def load_published(
    source: str | PathLike[str] | Weights, *, autoencoder_norm_groups: int = 8, unet_norm_groups: int = 32
) -> Autoencoder | UNet | Medfusion:
    """Build the network that published weights belong to and load them.

    Widths, channels, classes, sinusoids and depth come from the shapes of the weights. Latents of published networks
    are not scaled, so ``latent_mean`` stays 0 and ``latent_std`` 1. No code that is pickled in a file is run.

    Args:
        source: a Lightning checkpoint (a zip file with ``state_dict``), a ``.safetensors`` file, or a state dict
            with published names.
        autoencoder_norm_groups: groups of the autoencoder's normalisations, which cannot be inferred from weights.
        unet_norm_groups: groups of the UNet's normalisations.

    Returns:
        ``Autoencoder`` for the weights of a VAE or a VAEGAN, ``UNet`` for those of a UNet alone, ``Medfusion``
        for those of a diffusion pipeline; on the CPU, in float32.

    Raises:
        WeightsError: if the file cannot be read, a weight is missing, left over or of the wrong shape (named as in
            the file), or the noise schedule is not the published one.
        ValueError: if the normalisation groups do not divide a width.
    """
    everything = source if isinstance(source, Mapping) else read_state_dict(Path(source))
    weights = {name: value for name, value in everything.items() if not FOR_TRAINING.search(name)}
    if len(weights) < len(everything):
        parts = sorted({match[0].strip(".") for match in map(FOR_TRAINING.search, everything) if match})
        logger.info(
            "not loaded, since only training needs them: %d weights of %s", len(everything) - len(weights), parts
        )
    wrong = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if wrong:
        raise WeightsError(f"weight {wrong[0]!r} is not a tensor")
    prefixes = {name.split(".")[0] for name in weights}
    if "noise_estimator" in prefixes:
        return _pipeline(weights, autoencoder_norm_groups, unet_norm_groups)
    if "in_conv" in prefixes:
        return _unet(weights, "", unet_norm_groups)
    if prefixes & {"inc", "vqvae"}:
        return _autoencoder(weights, "", autoencoder_norm_groups)
    raise WeightsError(f"no published network has weights named like these: {sorted(prefixes)[:8] or 'none at all'}")


def _pipeline(weights: Weights, autoencoder_norm_groups: int, unet_norm_groups: int) -> Medfusion:
    known = ("noise_estimator.", "latent_embedder.", "noise_scheduler.")
    _refuse_surplus([name for name in weights if not name.startswith(known)])
    _check_schedule(weights)
    autoencoder = _autoencoder(weights, "latent_embedder.", autoencoder_norm_groups)
    unet = _unet(weights, "noise_estimator.", unet_norm_groups)
    latents, inputs, outputs = (
        autoencoder.latent_channels,
        unet.conv_in.in_channels,
        len(unet.conv_out.get_parameter("bias")),
    )
    if not latents == inputs == outputs:
        raise WeightsError(
            f"the UNet maps {inputs} channels to {outputs}, latents have {latents}: "
            "self-conditioning and learned variances are not supported"
        )
    return Medfusion(autoencoder, unet)


def _check_schedule(weights: Weights) -> None:
    schedule = NoiseSchedule()
    for name in ("betas", "alphas_cumprod"):
        ours, theirs = getattr(schedule, name), weights.get(f"noise_scheduler.{name}")
        if theirs is None:
            continue
        if theirs.shape != ours.shape or (theirs - ours).abs().max() > 1e-5:
            raise WeightsError(
                f"'noise_scheduler.{name}' differs from the published noise schedule (1000 timesteps, scaled linear, "
                "betas 0.002 to 0.02): the UNet would be sampled with a schedule that it was not trained with"
            )


def _autoencoder(weights: Weights, prefix: str, norm_groups: int) -> Autoencoder:
    if any(name.startswith(prefix + "vqvae.") for name in weights):
        outer, prefix = prefix, prefix + "vqvae."
        _refuse_surplus([name for name in weights if name.startswith(outer) and not name.startswith(prefix)])
    levels = _count(weights, prefix, "encoders")
    channels = [_size(weights, prefix + "inc.block_seq.0.basic_block.conv.weight", 0)]
    channels += [_size(weights, f"{prefix}encoders.{i}.down_op.down_op.weight", 0) for i in range(levels)]

    def build() -> Autoencoder:
        return Autoencoder(
            in_channels=_size(weights, prefix + "inc.block_seq.0.basic_block.conv.weight", 1),
            latent_channels=_size(weights, prefix + "inc_dec.block_seq.0.basic_block.conv.weight", 1),
            channels=channels,
            norm_groups=norm_groups,
            deep_supervision=any(name.startswith(prefix + "outc_ver.") for name in weights),
        )

    return _fill(build, _autoencoder_layers(levels), weights, prefix)


def _autoencoder_layers(levels: int) -> dict[str, str]:
    layers = {
        "conv_in": "inc",
        "to_moments.0": "out_enc.0.conv",
        "to_moments.1": "out_enc.1.conv",
        "from_latents": "inc_dec",
        "conv_out": "outc.conv",
        "conv_out_low": "outc_ver.0.conv",
    }
    for level in range(levels):
        mirrored = levels - 1 - level  # published decoders are stored from the highest resolution to the lowest
        layers[f"encoder.{level}.0"] = f"encoders.{level}.down_op.down_op"
        layers[f"encoder.{level}.1"] = f"encoders.{level}.conv_block"
        layers[f"decoder.{mirrored}.0.conv"] = f"decoders.{level}.up_op.up_op"
        layers[f"decoder.{mirrored}.1"] = f"decoders.{level}.conv_block"
    return layers


def _unet(weights: Weights, prefix: str, norm_groups: int) -> UNet:
    length = _count(weights, prefix, "in_blocks")
    downs = [i for i in range(length) if any(n.startswith(f"{prefix}in_blocks.{i}.down_op.") for n in weights)]
    blocks = downs[0] if downs else length  # residual blocks per level
    levels = len(downs) + 1
    firsts = [f"{prefix}in_blocks.{level * (blocks + 1)}.0" for level in range(levels)]
    channels = [_size(weights, prefix + "in_conv.conv.weight", 0)]
    channels += [_size(weights, f"{first}.block_seq.0.basic_block.conv.weight", 0) for first in firsts]
    labels = prefix + "cond_embedder.embedding.weight"

    def build() -> UNet:
        return UNet(
            in_channels=_size(weights, prefix + "in_conv.conv.weight", 1),
            out_channels=_size(weights, prefix + "outc.conv.conv.weight", 0),
            channels=channels,
            num_res_blocks=blocks,
            num_classes=_size(weights, labels, 0) if labels in weights else None,
            embedding_channels=_size(weights, prefix + "time_embedder.time_emb.3.weight", 0),
            time_channels=_size(weights, prefix + "time_embedder.time_emb.1.weight", 1),
            norm_groups=norm_groups,
        )

    return _fill(build, _unet_layers(levels, blocks), weights, prefix)


def _unet_layers(levels: int, blocks: int) -> dict[str, str]:
    layers = {
        "time_embedding.0": "time_embedder.time_emb.1",
        "time_embedding.2": "time_embedder.time_emb.3",
        "class_embedding": "cond_embedder.embedding",
        "conv_in": "in_conv.conv",
        "middle.0": "middle_block.0",
        "middle.1": "middle_block.2",
        "conv_out": "outc.conv.conv",
    }
    for index in range(levels * (blocks + 1) - 1):
        is_block = (index + 1) % (blocks + 1)
        layers[f"down_blocks.{index}"] = f"in_blocks.{index}.0" if is_block else f"in_blocks.{index}.down_op"
    total = levels * (blocks + 1)
    for index in range(total):  # published out_blocks are stored from the last that runs to the first
        ours, theirs = index + index // (blocks + 1), total - 1 - index
        layers[f"up_blocks.{ours}"] = f"out_blocks.{theirs}.0"
        if (index + 1) % (blocks + 1) == 0:
            layers[f"up_blocks.{ours + 1}.conv"] = f"out_blocks.{theirs}.2.up_op"
    return layers


def _fill(build: Callable[[], Network], layers: Mapping[str, str], weights: Weights, prefix: str) -> Network:
    with torch.device("meta"):  # no time and no random numbers spent on weights that are replaced
        network = build()
    own = network.state_dict()
    loaded = {"latent_mean": torch.zeros, "latent_std": torch.ones}
    state = {name: loaded[name](value.shape) for name, value in own.items() if name in loaded}
    names = {name: prefix + _published_name(name, layers) for name in own if name not in loaded}
    for name, published in names.items():
        if published not in weights:
            raise WeightsError(f"weight {published!r} is missing")
        if weights[published].shape != own[name].shape:
            shapes = f"{tuple(weights[published].shape)}, the network needs {tuple(own[name].shape)}"
            raise WeightsError(f"weight {published!r} has the shape {shapes}")
        if weights[published].is_floating_point() != own[name].is_floating_point():
            raise WeightsError(
                f"weight {published!r} is {weights[published].dtype}, the network needs {own[name].dtype}"
            )
        state[name] = weights[published]
    surplus = {name for name in weights if name.startswith(prefix)} - set(names.values())
    _refuse_surplus(sorted(surplus))
    network.to_empty(device="cpu").load_state_dict(state)
    return network


def _published_name(name: str, layers: Mapping[str, str]) -> str:
    for ours, theirs in layers.items():
        if name.startswith(ours + "."):
            layer, _, kind = name[len(ours) + 1 :].rpartition(".")
            return ".".join(part for part in (theirs, BLOCK_PARTS[layer] if layer else "", kind) if part)
    raise AssertionError(f"no published name for {name}")


def _refuse_surplus(names: list[str]) -> None:
    if names:
        raise WeightsError(f"weight {names[0]!r} belongs to no layer of the network ({len(names)} such weights)")


def _size(weights: Weights, name: str, dim: int) -> int:
    if name not in weights:
        raise WeightsError(f"weight {name!r} is missing")
    if weights[name].ndim <= dim:
        raise WeightsError(f"weight {name!r} has the shape {tuple(weights[name].shape)}: too few dimensions")
    return weights[name].shape[dim]


def _count(weights: Weights, prefix: str, kind: str) -> int:
    pattern = re.compile(re.escape(f"{prefix}{kind}.") + r"(\d+)\.")
    indices = [int(match[1]) for match in map(pattern.match, weights) if match]
    if not indices:
        raise WeightsError(f"weight '{prefix}{kind}.0...' is missing: no level was found")
    return max(indices) + 1
