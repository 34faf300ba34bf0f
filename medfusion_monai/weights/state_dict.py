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
"""Limit of the format on the bytes of a safetensors header."""
LEARNED = ("weight", "bias", "running_mean", "running_var")
"""Ends of the names of tensors that are floating point in every network; others may be counters, indices or texts."""


def save_atomically(state: Any, path: str | Path) -> None:
    """Write a file with ``torch.save`` under a temporary name and rename it, so that it is never half-written."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file object, because torch writes a path's name into the file.
    with renamed_when_whole(path) as partial, open(partial, "wb") as file:
        torch.save(state, file)
        forget_checksum(path)


def save_weights(network: nn.Module, path: str | Path) -> None:
    """Write the network's state dict, on the CPU.

    The entry of a previous file is removed from ``checksums.sha256`` beside it.
    """
    save_atomically({name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}, path)


def save_safetensors(
    network: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None, half: bool = False
) -> None:
    """Write the network's state dict as safetensors; the same weights and metadata give the same bytes.

    Args:
        network: the network.
        path: the file, written under a temporary name and renamed.
        metadata: texts for the file's header, besides ``format``.
        half: whether to store parameters in float16; buffers, as the latents' statistics, keep their type.

    Raises:
        WeightsError: if the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    if half:
        state |= {name: state[name].half() for name, _ in network.named_parameters()}
    with renamed_when_whole(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode  # the library makes its file readable for its owner alone
        try:
            save_file(state, partial, metadata={"format": "pt", **(metadata or {})})
        except SafetensorError as error:
            raise WeightsError(f"{path} cannot be written: {error}. Make room, or choose another folder") from error
        partial.chmod(mode)
        with open(partial, "r+b") as file:
            _sort_metadata(file)
        forget_checksum(path)


def read_safetensors_metadata(path: str | Path) -> dict[str, str]:
    """Read the texts of a safetensors file's header; other files have none.

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
        WeightsError: if the file is missing, damaged, or contains something else, also weights that are not floating
            point.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"weights {path} do not exist: choose another file")
    try:
        state = load_file(path) if _is_safetensors(path) else _load_saved(path)
    except Exception as error:
        raise WeightsError(_unreadable(path)) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise WeightsError(f"weights {path} are not a plain state dict of tensors: save only network.state_dict()")
    learned = {name: value for name, value in state.items() if name.endswith(LEARNED)}
    odd = [f"{name} {_type_of(value)}" for name, value in learned.items() if not value.is_floating_point()]
    if odd:
        raise WeightsError(
            f"weights {path} are not floating point: {len(odd)} of {len(learned)} ({', '.join(odd[:3])}). Use the "
            "weights as trained, not quantized or converted ones"
        )
    return state


def load_weights(network: nn.Module, path: str | Path, how_made: str = "train") -> nn.Module:
    """Load a complete state dict into a network and return the network.

    Args:
        network: the network to fill.
        path: the file, of ``torch.save`` or safetensors; only tensors are read from it, nothing in it is executed.
            If ``checksums.sha256`` beside it lists it, it must have that checksum.
        how_made: how to create the file, for the error text if it is missing.

    Raises:
        WeightsError: with the file and what is missing, surplus, of another shape or type, or out of range; or both
            checksums.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"weights {path} do not exist: {how_made} first, or choose another file")
    check_listed(path)
    return fill_weights(network, read_state(path), path)


def fill_weights(network: nn.Module, state: dict[str, Tensor], path: Path) -> nn.Module:
    """Load a complete state dict, read from ``path``, into a network and return the network.

    Raises:
        WeightsError: with the file and what is missing, surplus, of another shape or type, or out of range.
    """
    problems = _misfits(network.state_dict(), state)
    if problems:
        raise WeightsError(
            f"weights {path} do not fit this network: {'; '.join(problems)}. Use the configuration that they were "
            "trained with (in a training, e.g. configs/demo.yaml), or copy the model.json that belongs to them"
        )
    network.load_state_dict(state)
    return network


def check_listed(path: str | Path) -> None:
    """Check a file against ``checksums.sha256`` beside it; one that is not listed passes.

    Raises:
        WeightsError: with both checksums, or if the list cannot be read.
    """
    listed = Path(path).with_name(CHECKSUMS)
    try:
        expected = expected_sha256(path)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{listed} cannot be read: {error}. Fetch it again; without this file, nothing is compared"
        ) from error
    if expected is None:
        return
    found = file_sha256(path)
    if found != expected:
        raise WeightsError(
            f"{path} is damaged or was replaced: its SHA-256 begins with {found[:12]}, but {listed.name} beside it "
            f"lists {expected[:12]}. Fetch the file again; if you replaced it yourself, delete its line in {listed}"
        )


def _is_safetensors(path: Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(9)
    if start[:4] == b"PK\x03\x04":  # a zip file, as torch.save writes it, whatever its name
        return False
    header = int.from_bytes(start[:8], "little")
    return path.suffix == SAFETENSORS or (0 < header <= LONGEST_HEADER and start[8:] == b"{")


def _load_saved(path: Path) -> Any:
    with open(path, "rb") as file, warnings.catch_warnings():  # given a path, torch goes by its name,
        warnings.simplefilter("ignore")  # and it warns of pickles that it then refuses
        return torch.load(file, map_location="cpu", weights_only=True)


def _unreadable(path: str | Path) -> str:
    return f"weights {path} cannot be read: damaged, or not a plain file of tensors"


def _sort_metadata(file: Any) -> None:
    """Rewrite the header with its texts sorted; the library writes them in arbitrary order, of the same length."""
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
    if len(text) != length:
        raise AssertionError("unreachable: the same texts in another order are as long")
    file.seek(8)
    file.write(text)
    file.flush()


def _type_of(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _misfits(expected: dict[str, Tensor], state: dict[str, Tensor]) -> list[str]:
    both = {name: (value, state[name]) for name, value in expected.items() if name in state}
    kinds = {
        "missing": sorted(expected.keys() - state.keys()),
        "surplus": sorted(state.keys() - expected.keys()),
        "of another shape": [
            f"{name} {tuple(found.shape)} instead of {tuple(wanted.shape)}"
            for name, (wanted, found) in both.items()
            if found.shape != wanted.shape
        ],
        "of another type": [
            f"{name} {_type_of(found)} instead of {_type_of(wanted)}"
            for name, (wanted, found) in both.items()
            if found.is_floating_point() != wanted.is_floating_point()
        ],
        "out of range": [
            f"{name} {found.min():g} to {found.max():g}"
            for name, (_, found) in both.items()
            if name.rpartition(".")[2] == "latent_std" and not (torch.isfinite(found) & (found > 0)).all()
        ],
    }
    return [f"{len(names)} {kind} ({', '.join(names[:3])})" for kind, names in kinds.items() if names]
