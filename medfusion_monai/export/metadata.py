"""A bundle's ``metadata.json``, adapted to the weights that it contains."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medfusion_monai.model import Model
from medfusion_monai.report.read_back import read_object
from medfusion_monai.weights.places import STARTER

METADATA = Path("configs", "metadata.json")
"""The file in a bundle."""
CHANNELS = {1: "one channel", 3: "three channels"}
COLOURS = {"0": "red", "1": "green", "2": "blue"}


def metadata_of(metadata: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Return a bundle's metadata with classes, channels and sizes of a model; all that fits is kept.

    Args:
        metadata: of the bundle.
        model: of the weights.
    """
    names, channels = model.class_names, model.image_channels
    changed = copy.deepcopy(dict(metadata))
    if not names_classes(str(metadata.get("label_classes", "")), names):
        changed["label_classes"] = ", ".join(f"{label} {name}" for label, name in enumerate(names))
        changed["task"] = f"Class-conditional generation of images: {', '.join(names)}"
    for key, subject in (("image_classes", "images"), ("pred_classes", "synthetic images")):
        changed[key] = image_text(str(metadata.get(key, "")), subject, channels, model.image_size)
    sides: list[Any] = list(model.image_size)
    if model.has_latents:
        sides = [f"{model.network.autoencoder.downsampling_factor}*n"] * 2
    formats = changed.get("network_data_format", {})
    for group, name, gray in (("inputs", "image", "image"), ("outputs", "pred", "reconstruction")):
        tensor = formats.get(group, {}).get(name)
        if tensor is None:
            continue
        tensor["spatial_shape"] = sides
        if tensor.get("num_channels") != channels:
            tensor["num_channels"] = channels
            tensor["channel_def"] = COLOURS if channels == len(COLOURS) else {"0": gray}
    return changed


def metadata_beside(weights: str | Path) -> dict[str, Any] | None:
    """Read ``metadata.json`` of the bundle whose ``models`` contains the weights, its own or the starter's; else None.

    Raises:
        ValueError: for a file that cannot be read as JSON.
    """
    folder = Path(os.path.abspath(weights)).parent
    found = (folder.parents[1] if folder.name == STARTER else folder.parent) / METADATA
    return read_object(found) if found.is_file() else None


def names_classes(text: str, names: Sequence[str]) -> bool:
    """Return whether a text like ``0 no cardiomegaly, 1 cardiomegaly`` lists these classes, underscores as spaces."""
    found = dict(re.findall(r"(?:^|, )(\d+) ([^,]*)", text))
    words = [re.escape(_words(name)) for name in names]
    return len(found) == len(names) and all(
        re.match(rf"{word}(?!\w)", _words(found.get(str(label), ""))) for label, word in enumerate(words)
    )


def image_text(text: str, subject: str, channels: int, image_size: Sequence[int]) -> str:
    """Return a description of images: channels, content, value range and size.

    Args:
        text: of the bundle, such as ``one channel, frontal chest X-rays in [0, 1]``; it is kept if it has these
            channels.
        subject: content of the images otherwise.
        channels: of the images.
        image_size: height and width.
    """
    words = CHANNELS.get(channels, f"{channels} channels")
    kept = text.partition(" in [0, 1]")[0]
    shown = kept if kept.startswith(words) else f"{words}, {subject}"
    height, width = image_size
    return f"{shown} in [0, 1], {height} x {width} pixels"


def _words(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())
