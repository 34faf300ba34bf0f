"""A bundle's trained model, with the settings that it was trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monai.bundle import ConfigParser

from medfusion_monai.bundle import check_image_size, load_model
from medfusion_monai.configs import build, read_configs
from medfusion_monai.diffusion import LatentDiffusionSampler
from medfusion_monai.networks import Medfusion


class TrainedModel(NamedTuple):
    """Both networks with their weights, how they are sampled, and the configs that say so.

    ``settings`` is what inference must have in common with the training, as ``medfusion_monai.bundle.model_settings``
    gives it.
    """

    parser: ConfigParser
    network: Medfusion
    sampler: LatentDiffusionSampler
    class_names: list[str]
    settings: dict[str, Any]


def open_model(
    bundle: str | Path, model_file: str | Path, overlays: Sequence[str] = (), overrides: Mapping[str, Any] | None = None
) -> TrainedModel:
    """Build the networks of a bundle and load their weights.

    Args:
        bundle: folder of the bundle.
        model_file: ``models/model.pt``, or safetensors.
        overlays: files of ``configs`` that were merged after ``train.yaml`` in the training.
        overrides: keys that were given on the command line of the training.

    Raises:
        ValueError: for files that are missing, and for settings and weights that do not fit.
    """
    parser = read_configs(bundle, ["inference.yaml", *overlays], overrides)
    class_names, sampler = build(parser, "class_names"), build(parser, "inferer")
    network: Medfusion = build(parser, "network_def")
    check_image_size(build(parser, "image_size"), network.autoencoder.downsampling_factor)
    settings = build(parser, "model_settings")
    load_model(network, model_file, **settings)
    return TrainedModel(parser, network, sampler, list(class_names), settings)
