"""The identity of stored latents, which prevents the use of latents of other weights or images."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.transforms import Compose, Transform
from torch import nn

from medfusion_monai.runtime.files import look_at_all, size_and_time

FORMAT = "medfusion latents 1"
DIGITS = 16
WORDS = {"format": "another format", "dtype": "another number format"}


def latent_identity(
    autoencoder: nn.Module,
    files: Sequence[str],
    flips: Sequence[str],
    preprocessing: Any = None,
    labels: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Describe everything that determines latents, as JSON values without file names.

    Args:
        autoencoder: the network; its type, layers and weights count.
        files: the images in their order. Their paths below their common folder, sizes and times of change count.
        flips: flips of :class:`~medfusion_monai.data.training.flips.FlippedDataset`.
        preprocessing: transforms that read and resize; their types and settings count.
        labels: labels of the images, if an unreadable image is replaced by one of its label.
    """
    identity = {
        "format": FORMAT,
        "dtype": "float16",
        "weights": network_digest(autoencoder),
        "images": files_digest(files),
        "labels": None if labels is None else _digest([int(label) for label in labels]),
        "flips": list(flips),
        "preprocessing": describe_transforms(preprocessing),
    }
    return json.loads(json.dumps(identity))  # tuples become lists, as in the file it is compared with


def identity_digits(identity: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that distinguish an identity from others."""
    return _digest(identity)[:DIGITS]


def differences(found: Any, expected: Mapping[str, Any]) -> list[str]:
    """Return in words how an identity differs from another, e.g. ``other weights``; empty for equal ones.

    Args:
        found: content of a file, possibly of another version or not an identity.
        expected: from ``latent_identity``.
    """
    if not isinstance(found, dict) or found.get("format") != expected["format"]:
        return [WORDS["format"]]
    words = []
    for key in [key for key in expected if found.get(key) != expected[key]]:
        old, new = found.get(key), expected[key]
        if key == "preprocessing" and isinstance(old, dict):
            changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
            words += [f"{name} {json.dumps(old.get(name))} instead of {json.dumps(new.get(name))}" for name in changed]
        elif key == "flips":
            words.append(f"flips {json.dumps(old)} instead of {json.dumps(new)}")
        else:
            words.append(WORDS.get(key, f"other {key}"))
    return words


def network_digest(network: nn.Module) -> str:
    """Return the SHA-256 of a network: its layers as text, and the names, types, shapes and bytes of its state."""
    digest = hashlib.sha256(repr(network).encode())  # e.g. the number of groups of a normalisation is not in a tensor
    for name, value in network.state_dict().items():
        digest.update(repr((name, value.dtype, tuple(value.shape))).encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def describe_transforms(transform: Any) -> dict[str, Any]:
    """Return the types and plain settings of transforms, e.g. ``{"1 ResizeCenterCropd.mode": "crop"}``."""
    if transform is None:
        return {}
    steps = transform.flatten().transforms if isinstance(transform, Compose) else [transform]
    facts: dict[str, Any] = {}
    for number, step in enumerate(steps):
        _describe(f"{number} {type(step).__name__}", step, facts)
    return facts


def _describe(name: str, value: Any, facts: dict[str, Any]) -> None:
    if isinstance(value, Transform):
        facts[name] = f"{type(value).__module__}.{type(value).__qualname__}"
        for attribute, part in vars(value).items():
            _describe(f"{name}.{attribute}", part, facts)
    elif _is_plain(value):
        facts[name] = value
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            _describe(f"{name}[{number}]", part, facts)
    else:  # functions and other objects are described by their name or type only
        facts[name] = getattr(value, "__qualname__", type(value).__qualname__)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, str | int | float)


def files_digest(files: Sequence[str]) -> str:
    """Return the SHA-256 of a list of files: order, paths below their common folder, sizes, times of change.

    A missing file counts as a file without size and time.
    """
    facts = look_at_all(size_and_time, files)
    folder = os.path.commonpath([os.path.dirname(path) for path in files])
    return _digest([[os.path.relpath(path, folder), fact] for path, fact in zip(files, facts, strict=True)])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
