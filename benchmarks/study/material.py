"""What all arms of a study share: images, the autoencoder, its posteriors, the recipe of the bundle."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medfusion_monai.bundle.parser import read_files
from medfusion_monai.data.datalist import read_datalist
from medfusion_monai.networks.autoencoder import Autoencoder
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.weights.state_dict import load_weights, save_atomically

CONFIGS = ("train.yaml", "demo.yaml")
BATCH = 64
RECIPE = (
    "class_names",
    "image_size",
    "latent_channels",
    "unet_channels",
    "unet_embedding_channels",
    "unet_norm_groups",
    "diffusion_batch_size",
    "diffusion_lr",
    "diffusion_lr_warmup",
    "diffusion_lr_decay",
    "label_dropout",
    "max_grad_norm",
    "autoencoder_steps",
)


class Split(NamedTuple):
    """Images (N, C, H, W) in [0, 1] of a split, their labels, and the moments (N, 2 * latent_channels, h, w)."""

    images: Tensor
    labels: list[int]
    moments: Tensor


class Material(NamedTuple):
    """What all arms share."""

    recipe: Mapping[str, Any]
    autoencoder: Autoencoder
    training: Split
    held_out: Split

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(latent_channels, h, w)."""
        channels, height, width = self.training.moments.shape[1:]
        return channels // 2, height, width


def read_recipe(bundle: str | Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the keys of a bundle's demo that a study needs, so that both stay in step."""
    parser = read_files(config_files(bundle), overrides or {})
    return {name: parser.get_parsed_content(name) for name in RECIPE}


def config_files(bundle: str | Path) -> list[str]:
    """Return the paths of the configs of a bundle's demo training."""
    return [str(Path(bundle).absolute() / "configs" / name) for name in CONFIGS]


def train_autoencoder(bundle: str | Path, dataset_dir: Path, folder: Path, steps: int) -> Path:
    """Train the autoencoder by the bundle's own command, unless that is done, and return the path of its weights.

    Raises:
        ValueError: if the training fails; what it said stands above.
    """
    weights = folder / "models" / "autoencoder.pt"
    if weights.is_file():
        return weights
    interval = next((count for count in (500, 200, 100) if steps % count == 0), steps)
    settings = {
        "dataset_dir": dataset_dir.absolute(),
        "model_dir": weights.parent.absolute(),
        "output_dir": (folder / "autoencoder").absolute(),
        "autoencoder_steps": steps,
        "autoencoder_val_interval": interval,
    }
    command = [sys.executable, "-m", "monai.bundle", "run", "train_autoencoder", "--config_file"]
    command += [str(config_files(bundle))]
    command += [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    environment = {"PYTHONWARNINGS": "ignore", **os.environ, "OMP_NUM_THREADS": "1"}
    if subprocess.run(command, check=False, env=environment).returncode:
        raise ValueError("train_autoencoder failed: what it said stands above. Mend it and run the same command again")
    return weights


def load_material(
    bundle: str | Path, dataset_dir: Path, weights: Path, overrides: Mapping[str, Any] | None = None
) -> Material:
    """Read the images and encode them once, or take the moments that were kept beside the weights."""
    parser = read_files(config_files(bundle), overrides or {})
    recipe = read_recipe(bundle, overrides)
    autoencoder: Autoencoder = parser.get_parsed_content("autoencoder")
    load_weights(autoencoder, weights).eval().requires_grad_(False)
    preprocessing = parser.get_parsed_content("train#preprocessing")
    splits = {
        name: read_split(dataset_dir, parts, recipe["class_names"], preprocessing)
        for name, parts in {"training": ["training"], "held_out": ["validation", "test"]}.items()
    }
    kept = weights.with_name("moments.pt")
    identity = file_sha256(weights)
    moments = torch.load(kept, weights_only=True) if kept.is_file() else {}
    if moments.get("autoencoder") != identity or any(len(moments[n]) != len(s[1]) for n, s in splits.items()):
        moments = {
            "autoencoder": identity,
            **{name: encode(autoencoder, images) for name, (images, _) in splits.items()},
        }
        save_atomically(moments, kept)
    parts = {name: Split(images, labels, moments[name]) for name, (images, labels) in splits.items()}
    return Material(recipe, autoencoder, **parts)


def read_split(
    dataset_dir: Path, splits: Sequence[str], class_names: Sequence[str], preprocessing: Any
) -> tuple[Tensor, list[int]]:
    """Read the images (N, C, H, W) and labels of one or several splits of a prepared folder."""
    items = [item for split in splits for item in read_datalist(dataset_dir, split, class_names)]
    images = [torch.as_tensor(preprocessing({"image": item["image"]})["image"]) for item in items]
    return torch.stack(images), [item["label"] for item in items]


@torch.no_grad()
def encode(autoencoder: Autoencoder, images: Tensor) -> Tensor:
    """Return mean and log-variance (N, 2 * latent_channels, h, w) of posteriors of images (N, C, H, W) in [0, 1]."""
    posteriors = [autoencoder.encode(part * 2.0 - 1.0) for part in images.split(BATCH)]
    return torch.cat([torch.cat([posterior.mean, posterior.logvar], dim=1) for posterior in posteriors])


@torch.no_grad()
def decode(autoencoder: Autoencoder, latents: Tensor) -> Tensor:
    """Return images (N, C, H, W) in [0, 1], rounded as files of 8 bits are, of unit-variance latents (N, C, h, w)."""
    parts = [autoencoder.decode_stage_2_outputs(part) for part in latents.split(BATCH)]
    return ((torch.cat(parts) * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round() / 255.0
