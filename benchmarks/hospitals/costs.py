"""What travels between the hospitals, in bytes, measured on the files and weights of a study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hospitals.protocol import CENTRAL, FEDERATED, SHARED, Protocol
from hospitals.sites import SITES
from medfusion_monai.data.datalist import read_datalist
from medfusion_monai.sites.federation import AUTOENCODER

MEGABYTE = 1e6


def travelling(
    data: Mapping[str, Path], federated: Path, packages: Mapping[str, int], protocol: Protocol
) -> dict[str, dict[str, int]]:
    """Return the bytes that each site sends, and for the federation those that it receives, by arm.

    Args:
        data: folders of the data sets by site.
        federated: folder of the federated run; without weights, its arm is left out.
        packages: bytes of the packages by site.
        protocol: of the rounds.
    """
    rows = {CENTRAL: {site: image_bytes(data[site]) for site in SITES}}
    if (federated / "diffusion.pt").is_file():
        sent, received = weights_bytes(federated, protocol)
        rows[FEDERATED] = dict.fromkeys(SITES, sent)
        rows[f"{FEDERATED}, received"] = dict.fromkeys(SITES, received)
    if packages:
        rows[SHARED] = dict(packages)
    return rows


def image_bytes(folder: Path) -> int:
    """Return the bytes of the image files of training and validation, as they lie on the disk."""
    items = [item for split in ("training", "validation") for item in read_datalist(folder, split)]
    return sum(Path(item["image"]).stat().st_size for item in items)


def weights_bytes(federated: Path, protocol: Protocol) -> tuple[int, int]:
    """Return the bytes of all tensors that a site sends and receives in all rounds, one more in phase one.

    In phase two the autoencoder travels to the sites alone, see docs/federated.md.
    """
    states = {phase: _read(federated / f"{phase}.pt") for phase in ("autoencoder", "diffusion")}
    first = (protocol.autoencoder_rounds + 1) * _bytes(states["autoencoder"])
    second = protocol.diffusion_rounds * _bytes(states["diffusion"])
    kept = {name: value for name, value in states["diffusion"].items() if not name.startswith(AUTOENCODER)}
    return first + protocol.diffusion_rounds * _bytes(kept), first + second


def _read(path: Path) -> Mapping[str, Any]:
    return torch.load(path, weights_only=True)


def _bytes(state: Mapping[str, Any]) -> int:
    return sum(value.numel() * value.element_size() for value in map(torch.as_tensor, state.values()))
