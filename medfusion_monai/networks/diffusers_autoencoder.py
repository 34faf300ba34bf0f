"""First stages of other projects, such as the VAE of Stable Diffusion, from folders in diffusers' format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.files import file_sha256

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
KIND = "AutoencoderKL"


class DiffusersAutoencoder(nn.Module):
    """An ``AutoencoderKL`` of diffusers with the ``reconstruct`` of our autoencoders; it is not trained here.

    Nothing is downloaded, and only safetensors are read, which contain no code.

    Args:
        folder: with ``config.json`` and ``diffusion_pytorch_model.safetensors``, like the folder ``vae`` of a Stable
            Diffusion model.

    Attributes:
        name: the folder's name.
        sha256: of its weights file.
        downsampling_factor: ratio of image height and width to those of latents.

    Raises:
        ValueError: if diffusers is not installed.
        WeightsError: if the folder, its configuration or its weights are missing, damaged or of another kind.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        folder = Path(folder)
        _check_files(folder)
        self.network: Any = _load(folder)
        self.name = folder.resolve().name
        self.sha256 = file_sha256(folder / WEIGHTS)
        self.in_channels: int = self.network.config.in_channels
        self.downsampling_factor = 2 ** (len(self.network.config.block_out_channels) - 1)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def reconstruct(self, image: Tensor) -> Tensor:
        """Encode and decode images by the most likely latents, without randomness.

        Args:
            image: (B, C, H, W) in [-1, 1]. For an RGB network, a single channel is repeated to three, and the three
                channels of the reconstruction are averaged.

        Returns:
            (B, C, H, W) in about [-1, 1].

        Raises:
            ValueError: if the channels or the size do not fit.
        """
        self.check_image(image)
        gray = image.shape[1] == 1 and self.in_channels == 3
        shown = image.expand(-1, 3, -1, -1) if gray else image
        reconstruction = self.network.decode(self.network.encode(shown).latent_dist.mode()).sample
        return reconstruction.mean(dim=1, keepdim=True) if gray else reconstruction

    def forward(self, image: Tensor) -> Tensor:
        """Return ``reconstruct(image)``."""
        return self.reconstruct(image)

    def check_image(self, image: Tensor) -> None:
        """Raise a ValueError if images of this shape do not fit."""
        factor, channels = self.downsampling_factor, image.shape[1]
        if channels != self.in_channels and (channels, self.in_channels) != (1, 3):
            raise ValueError(f"image has {channels} channels, but autoencoder {self.name} expects {self.in_channels}")
        if image.shape[-1] % factor or image.shape[-2] % factor:
            raise ValueError(
                f"image size {tuple(image.shape[-2:])} is not divisible by {factor}, which autoencoder {self.name} "
                "requires: resize or pad the images"
            )


def _check_files(folder: Path) -> None:
    """Raise a WeightsError if a file is missing, with what the folder contains instead."""
    if not folder.is_dir():
        raise WeightsError(f"first stage {folder} is not a folder: give one with {CONFIG} and {WEIGHTS}")
    if not (folder / CONFIG).is_file():
        inner = folder / "vae"
        hint = f"give its folder {inner}" if (inner / CONFIG).is_file() else "give the folder of one autoencoder"
        raise WeightsError(f"first stage {folder} has no {CONFIG}: {hint}")
    try:
        kind = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise WeightsError(f"{folder / CONFIG} cannot be read as JSON: fetch it again") from error
    if kind != KIND:
        raise WeightsError(f"first stage {folder} is a {kind}: only {KIND} of diffusers is supported")
    if not (folder / WEIGHTS).is_file():
        others = sorted(
            path.name for path in folder.iterdir() if path.suffix in (".bin", ".ckpt", ".pt", ".safetensors")
        )
        found = f" (found {', '.join(others)})" if others else ""
        raise WeightsError(
            f"first stage {folder} has no {WEIGHTS}{found}: pickles can run code and are not read. Download "
            "the safetensors file of the same model and save it there under this name"
        )


def _load(folder: Path) -> Any:
    """Load the network with diffusers; raise a WeightsError unless all weights fit."""
    try:
        from diffusers import AutoencoderKL
        from diffusers.utils import logging
    except ImportError as error:
        raise ValueError(
            f"first stage {folder} needs diffusers, which is not installed: pip install diffusers"
        ) from error
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # problems are raised below
    try:
        network, report = AutoencoderKL.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,  # True needs another package, accelerate
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:
        raise WeightsError(
            f"first stage {folder} cannot be loaded: {WEIGHTS} is damaged or does not fit {CONFIG}: {error}"
        ) from error
    finally:
        logging.set_verbosity(level)
    settings = network.config
    if settings.in_channels != settings.out_channels:
        raise WeightsError(
            f"first stage {folder} has {settings.in_channels} input and {settings.out_channels} output channels: "
            "give one with as many of both"
        )
    misfits = misfits_of(report)
    if misfits:
        raise WeightsError(
            f"first stage {folder}: weights do not fit {CONFIG}: {misfits}. Fetch both files of one model"
        )
    return network


def misfits_of(report: Mapping[str, Any]) -> str:
    """Return which weights do not fit a network, in words; empty if all do.

    Args:
        report: of diffusers on loading the network, which leaves missing weights randomly initialised.
    """
    wrong = {kind: sorted(report[f"{kind}_keys"]) for kind in ("missing", "unexpected")}
    return "; ".join(f"{len(names)} {kind} ({', '.join(names[:3])})" for kind, names in wrong.items() if names)
