"""A trained model that is about to be shared: opened on the CPU, and described only by known keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medfusion_monai.diffusion.inferer import SETTINGS
from medfusion_monai.model import Model, load
from medfusion_monai.weights.guidance_model import SETTING
from medfusion_monai.weights.model_info import describe_model, earlier_trainings
from medfusion_monai.weights.places import weights_at

IMAGE = ("resize_mode", "dicom_modalities")
TRAINING = ("images", "image_count", "steps", "images_per_step", "average")


def open_model(model_file: str | Path) -> Model:
    """Load a trained model on the CPU; its ``path`` is that of its weights.

    Args:
        model_file: weights, or a folder or bundle that contains them.

    Raises:
        WeightsError: if there are none, they have no description, or they do not fit it.
    """
    return load(weights_at(model_file), "cpu")


def public_info(model: Model) -> dict[str, Any]:
    """Return the description of a model with only known keys: nothing else in a hospital's file is shared.

    Networks and schedule are described as they were built, with only their own arguments.

    Args:
        model: with its networks.
    """
    found = model.info
    return {
        **describe_model(
            model.network,
            model.schedule if model.has_latents else None,
            sampler=known(found.get("sampler"), (*SETTINGS, SETTING)),
            image=known(found.get("image"), IMAGE),
            training=known_training(found.get("training")),
            class_shares=model.class_shares,
        ),
        "version": found.get("version"),
    }


def known(part: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return the named keys of a part of a description; none if it lacks the part."""
    return {name: part[name] for name in names if name in part} if isinstance(part, Mapping) else {}


def known_training(training: Any) -> dict[str, Any]:
    """Return the known keys of what a description says of its training and of those before it."""
    return known(training, TRAINING) | earlier_trainings(training)
