"""Reading and writing weights: plain state dicts, never code."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.files import file_sha256, renamed_when_whole
from medfusion_monai.weights.checksums import CHECKSUMS, expected_sha256, forget_checksum

SAFETENSORS = ".safetensors"
LONGEST_HEADER = 100_000_000
"""Bytes of a safetensors header, as the format limits them."""


def save_atomically(state: Any, path: str | Path) -> None:
    """Write a file by ``torch.save`` beside its place and rename it, so that it is never half-written."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file object, because torch writes a path's name into the file.
    with renamed_when_whole(path) as partial, open(partial, "wb") as file:
        torch.save(state, file)
        forget_checksum(path)


def save_weights(network: nn.Module, path: str | Path) -> None:
    """Write the network's state dict, on the CPU.

    The file that was there before is taken out of ``checksums.sha256`` beside it.
    """
    save_atomically({name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}, path)


def save_safetensors(network: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write the network's state dict as safetensors; the same weights and metadata give the same bytes.

    Args:
        network: the network.
        path: the file, written beside its place and renamed.
        metadata: texts of the file's header, beside ``format``.

    Raises:
        WeightsError: if the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with renamed_when_whole(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode  # the library gives its file to its owner alone
        try:
            save_file(state, partial, metadata={"format": "pt", **(metadata or {})})
        except SafetensorError as error:
            raise WeightsError(f"{path} cannot be written: {error}. Make room, or name another place") from error
        partial.chmod(mode)
        with open(partial, "r+b") as file:
            _sort_metadata(file)
        forget_checksum(path)


def read_safetensors_metadata(path: str | Path) -> dict[str, str]:
    """Read the texts of a safetensors file's header; none of another file.

    Raises:
        WeightsError: if the file is damaged.
    """
    if not Path(path).is_file() or not _is_safetensors(Path(path)):
        return {}
    try:
        with safe_open(str(path), "pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:
        raise WeightsError(_unreadable(path)) from error


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read a plain state dict, of ``torch.save`` or safetensors, on the CPU; nothing in the file is executed.

    Raises:
        WeightsError: if the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"weights {path} do not exist: name another file")
    try:
        state = load_file(path) if _is_safetensors(path) else _load_saved(path)
    except Exception as error:
        raise WeightsError(_unreadable(path)) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise WeightsError(f"weights {path} are not a plain state dict of tensors: save network.state_dict() alone")
    return state


def load_weights(network: nn.Module, path: str | Path, how_made: str = "train") -> nn.Module:
    """Load a state dict into a network, all weights or an error, and return the network.

    Args:
        network: the network to fill.
        path: the file, of ``torch.save`` or safetensors; only tensors are read from it, nothing in it is executed.
            If ``checksums.sha256`` beside it lists it, it must have that checksum.
        how_made: what makes the file, for the message when it is missing.

    Raises:
        WeightsError: naming the file and what is missing, surplus or of another shape, or both checksums.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"weights {path} do not exist: {how_made} first, or name another file")
    check_listed(path)
    state = read_state(path)
    problems = _misfits(network.state_dict(), state)
    if problems:
        raise WeightsError(
            f"weights {path} do not fit this network: {'; '.join(problems)}. Use the configuration that they were "
            "trained with (in a training, e.g. configs/demo.yaml), or bring the model.json that belongs to them"
        )
    network.load_state_dict(state)
    return network


def check_listed(path: str | Path) -> None:
    """Check a file against ``checksums.sha256`` beside it; one that is not listed passes.

    Raises:
        WeightsError: naming both checksums, or if the list cannot be read.
    """
    listed = Path(path).with_name(CHECKSUMS)
    try:
        expected = expected_sha256(path)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{listed} cannot be read: {error}. Fetch it again; without it nothing is compared"
        ) from error
    if expected is None:
        return
    found = file_sha256(path)
    if found != expected:
        raise WeightsError(
            f"{path} is damaged or was exchanged: its SHA-256 begins with {found[:12]}, {listed.name} beside it says "
            f"{expected[:12]}. Fetch the file again; if you exchanged it yourself, delete its line in {listed}"
        )


def _is_safetensors(path: Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(9)
    if start[:4] == b"PK\x03\x04":  # a zip file, whatever its name: what torch.save writes
        return False
    header = int.from_bytes(start[:8], "little")
    return path.suffix == SAFETENSORS or (0 < header <= LONGEST_HEADER and start[8:] == b"{")


def _load_saved(path: Path) -> Any:
    with open(path, "rb") as file, warnings.catch_warnings():  # torch goes by the name of a path,
        warnings.simplefilter("ignore")  # and warns of pickles that it then refuses
        return torch.load(file, map_location="cpu", weights_only=True)


def _unreadable(path: str | Path) -> str:
    return f"weights {path} cannot be read: damaged, or not a plain file of tensors"


def _sort_metadata(file: Any) -> None:
    """Rewrite the header with its texts in order: the library writes them in any, which takes the same place."""
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
    if len(text) != length:
        raise AssertionError("unreachable: the same texts in another order are as long")
    file.seek(8)
    file.write(text)
    file.flush()


def _misfits(expected: dict[str, Tensor], state: dict[str, Tensor]) -> list[str]:
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
