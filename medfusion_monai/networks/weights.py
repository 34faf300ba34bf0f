"""Reading and writing weights: plain state dicts, never code."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medfusion_monai.files import renamed_when_whole


class WeightsError(ValueError):
    """A weights file that is missing, unreadable or does not fit the network."""


def save_atomically(state: Any, path: str | Path) -> None:
    """Write a file by ``torch.save`` beside its place and rename it, so that it is never half-written."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file object, because torch writes a path's name into the file.
    with renamed_when_whole(path) as partial, open(partial, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def save_weights(network: nn.Module, path: str | Path) -> None:
    """Write the network's state dict, on the CPU."""
    save_atomically({name: value.detach().cpu() for name, value in network.state_dict().items()}, path)


def load_weights(network: nn.Module, path: str | Path, how_made: str = "train") -> nn.Module:
    """Load a state dict into a network, all weights or an error, and return the network.

    Args:
        network: the network to fill.
        path: the file; only tensors are read from it, nothing in it is executed.
        how_made: what makes the file, for the message when it is missing.

    Raises:
        WeightsError: naming the file and what is missing, surplus or of another shape.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"weights {path} do not exist: {how_made} first, or name another file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(f"weights {path} cannot be read: damaged, or no plain file of tensors") from error
    problems = _misfits(network.state_dict(), state)
    if problems:
        raise WeightsError(
            f"weights {path} do not fit this network: {'; '.join(problems)}. Use the configuration that they were "
            "trained with, e.g. add configs/demo.yaml to --config_file if they come from it"
        )
    network.load_state_dict(state)
    return network


def file_sha256(path: str | Path) -> str:
    """Give the SHA-256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _misfits(expected: dict[str, torch.Tensor], state: Any) -> list[str]:
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        return ["it is not a plain state dict of tensors"]
    kinds = {
        "missing": sorted(expected.keys() - state.keys()),
        "surplus": sorted(state.keys() - expected.keys()),
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
            for name, value in expected.items()
            if name in state and state[name].shape != value.shape
        ],
    }
    return [f"{len(names)} {kind} ({', '.join(names[:3])})" for kind, names in kinds.items() if names]
