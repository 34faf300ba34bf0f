"""What the arms of a study share: images, autoencoders, posteriors and features, each computed once; the recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from medfusion_monai.bundle.parser import read_files
from medfusion_monai.data.datalist import find_datalist, read_datalist
from medfusion_monai.data.training.flips import for_each_variant
from medfusion_monai.model import load
from medfusion_monai.networks.autoencoder import LatentAutoencoder
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.weights.places import find_weights, missing_weights
from medfusion_monai.weights.state_dict import load_weights, read_state, save_atomically
from study.arms import Arm
from study.variants import PLAIN, variants_of, vary

BATCH = 64
SPLITS: Mapping[str, tuple[str, ...]] = {"training": ("training",), "held_out": ("validation", "test")}
RECIPE = (
    "class_names",
    "image_size",
    "image_channels",
    "latent_flips",
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


class Given(NamedTuple):
    """A trained autoencoder, and the SHA-256 of its weights file."""

    network: LatentAutoencoder
    sha256: str


class Split(NamedTuple):
    """Images of a split, and what is known of each of their variants.

    With F variants, entry ``i`` of labels, moments and features is of image ``i // F``.

    Attributes:
        images: (N, C, H, W) in [0, 1].
        labels: one per entry.
        moments: (N * F, 2 * latent_channels, h, w), float16.
        features: (N * F, D, rows, columns) for the alignment, float16; None where no arm asks for them.
    """

    images: Tensor
    labels: list[int]
    moments: Tensor
    features: Tensor | None = None


class Material(NamedTuple):
    """What an arm is trained on and measured with."""

    recipe: Mapping[str, Any]
    autoencoder: LatentAutoencoder
    training: Split
    held_out: Split

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(latent_channels, h, w)."""
        channels, height, width = self.training.moments.shape[1:]
        return channels // 2, height, width


class Materials:
    """Gives each arm its material; posteriors and features are computed when they are first needed, and kept.

    Args:
        folder: of what is kept; of one data set and one size of images.
        recipe: of the bundle.
        images: of each of ``SPLITS``, (N, C, H, W) in [0, 1], with labels.
        autoencoders: by the name that arms have for them.
        extractor: whose feature maps the alignment takes.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Mapping[str, Any],
        images: Mapping[str, tuple[Tensor, list[int]]],
        autoencoders: Mapping[str, Given],
        extractor: Any = None,
    ) -> None:
        self.folder, self.recipe, self.images = folder, recipe, images
        self.autoencoders, self.extractor = autoencoders, extractor
        self._read: dict[str, Tensor] = {}
        self._materials: dict[tuple[Any, ...], Material] = {}

    def material(self, arm: Arm) -> Material:
        """Return what an arm is trained on."""
        variants = variants_of(arm.augmentation, self.recipe["latent_flips"])
        key = (arm.autoencoder, bool(arm.alignment), *variants)
        if key not in self._materials:
            self._materials[key] = self._material(arm, variants)
        return self._materials[key]

    def _material(self, arm: Arm, variants: Sequence[str]) -> Material:
        images, labels = self.images["training"]
        moments = torch.stack([self.moments(arm.autoencoder, "training", variant) for variant in variants], dim=1)
        features = None
        if arm.alignment:
            grid = middle_grid(moments.shape[-2:], len(self.recipe["unet_channels"]))
            features = torch.stack([self.features(variant, grid) for variant in variants], dim=1).flatten(0, 1)
        training = Split(images, for_each_variant(labels, variants[1:]), moments.flatten(0, 1), features)
        held_out = Split(*self.images["held_out"], self.moments(arm.autoencoder, "held_out", PLAIN))
        return Material(self.recipe, self.autoencoders[arm.autoencoder].network, training, held_out)

    def moments(self, autoencoder: str, split: str, variant: str) -> Tensor:
        """Return the posteriors' moments (N, 2 * latent_channels, h, w), float16, of a variant of a split."""
        given = self.autoencoders[autoencoder]
        name = f"latents/{given.sha256[:12]}.{split}.{variant}.pt"
        return self._kept(name, lambda: encode(given.network, vary(self.images[split][0], variant)).half())

    def features(self, variant: str, grid: tuple[int, int]) -> Tensor:
        """Return maps of features (N, D, *grid), float16, of a variant of the training images."""
        images = self.images["training"][0]
        name = f"features/maps.{self.extractor.sha256[:12]}.{grid[0]}x{grid[1]}.{variant}.pt"
        return self._kept(name, lambda: feature_maps(self.extractor, vary(images, variant), grid))

    def reference(self) -> Tensor:
        """Return features (N, D) of the training images, which samples are compared with."""
        name = f"features/training.{self.extractor.sha256[:12]}.pt"
        return self._kept(name, lambda: features_of(self.extractor, self.images["training"][0]))

    def _kept(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        if name not in self._read:
            path = self.folder / name
            if not path.is_file():
                save_atomically(make(), path)
            self._read[name] = torch.load(path, weights_only=True)
        return self._read[name]


def read_recipe(
    bundle: str | Path, overlay: str = "demo.yaml", overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the keys of a bundle's overlay that a study needs, so that both stay in step."""
    parser = read_files(config_files(bundle, overlay), overrides or {})
    return {name: parser.get_parsed_content(name) for name in RECIPE}


def config_files(bundle: str | Path, overlay: str = "demo.yaml") -> list[str]:
    """Return the paths of the configs of a bundle's training with an overlay of it."""
    return [str(Path(bundle).absolute() / "configs" / name) for name in ("train.yaml", overlay)]


def own_class_names(dataset_dir: Path) -> list[str] | None:
    """Return the classes of a prepared folder, which a study takes in place of the bundle's; None if it has none."""
    names: list[str] | None = json.loads(find_datalist(dataset_dir).read_text(encoding="utf-8")).get("class_names")
    return names


def train_autoencoder(
    bundle: str | Path, overlay: str, dataset_dir: Path, folder: Path, overrides: Mapping[str, Any]
) -> Path:
    """Train the autoencoder by the bundle's own command, unless that is done, and return the path of its weights.

    Raises:
        ValueError: if the training fails; what it said stands above.
    """
    weights = folder / "models" / "autoencoder.pt"
    if weights.is_file():
        return weights
    steps = read_recipe(bundle, overlay, overrides)["autoencoder_steps"]
    interval = next((count for count in (500, 200, 100) if steps % count == 0), steps)
    settings = {
        **overrides,
        "dataset_dir": dataset_dir.absolute(),
        "model_dir": weights.parent.absolute(),
        "output_dir": (folder / "autoencoder").absolute(),
        "autoencoder_val_interval": interval,
    }
    command = [sys.executable, "-m", "monai.bundle", "run", "train_autoencoder", "--config_file"]
    command += [str(config_files(bundle, overlay))]
    command += [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    environment = {"PYTHONWARNINGS": "ignore", **os.environ, "OMP_NUM_THREADS": "1"}
    if subprocess.run(command, check=False, env=environment).returncode:
        raise ValueError("train_autoencoder failed: what it said stands above. Mend it and run the same command again")
    return weights


def open_autoencoder(path: str | Path, bundle: str | Path, overlay: str, overrides: Mapping[str, Any]) -> Given:
    """Open a trained autoencoder, with or without a UNet in the same file.

    Args:
        path: a weights file, or a folder with one. Weights of a whole model describe their autoencoder; an
            ``autoencoder.pt`` of phase one must be of the size that the overlay names.
        bundle: whose config describes weights that do not describe themselves.
        overlay: merged after its ``train.yaml``.
        overrides: merged after both.

    Raises:
        ValueError: if there are no weights, they do not fit, or they are for other images than the bundle's.
    """
    path = weights_at(path)
    parser = read_files(config_files(bundle, overlay), overrides)
    if any(name.startswith("autoencoder.") for name in read_state(path)):
        network = load(path, "cpu").network.autoencoder
    else:
        network = parser.get_parsed_content("autoencoder")
        load_weights(network, path)
    channels = parser.get_parsed_content("image_channels")
    if network.in_channels != channels:
        raise ValueError(f"{path} is for images of {network.in_channels} channels, those of {bundle} have {channels}")
    return Given(network.eval().requires_grad_(False), file_sha256(path))


def weights_at(path: str | Path) -> Path:
    """Return the weights at a path, a file or a folder.

    Raises:
        ValueError: if there are none.
    """
    found = find_weights(path)
    if not found.is_file():
        raise ValueError(missing_weights(found))
    return found


def read_images(
    bundle: str | Path, overlay: str, dataset_dir: Path, overrides: Mapping[str, Any]
) -> dict[str, tuple[Tensor, list[int]]]:
    """Read the images (N, C, H, W) and labels of each of ``SPLITS`` of a prepared folder."""
    parser = read_files(config_files(bundle, overlay), overrides)
    read, names = parser.get_parsed_content("train#preprocessing"), parser.get_parsed_content("class_names")
    found = {}
    for split, parts in SPLITS.items():
        items = [item for part in parts for item in read_datalist(dataset_dir, part, names)]
        images = [torch.as_tensor(read({"image": item["image"]})["image"]) for item in items]
        found[split] = torch.stack(images), [item["label"] for item in items]
    return found


@torch.no_grad()
def encode(autoencoder: LatentAutoencoder, images: Tensor) -> Tensor:
    """Return mean and log-variance (N, 2 * latent_channels, h, w) of posteriors of images (N, C, H, W) in [0, 1]."""
    posteriors = [autoencoder.encode(part * 2.0 - 1.0) for part in images.split(BATCH)]
    return torch.cat([torch.cat([posterior.mean, posterior.logvar], dim=1) for posterior in posteriors])


@torch.no_grad()
def decode(autoencoder: LatentAutoencoder, latents: Tensor) -> Tensor:
    """Return images (N, C, H, W) in [0, 1], rounded as files of 8 bits are, of unit-variance latents (N, C, h, w)."""
    parts = [autoencoder.decode_stage_2_outputs(part) for part in latents.split(BATCH)]
    return ((torch.cat(parts) * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round() / 255.0


@torch.no_grad()
def features_of(extractor: Any, images: Tensor) -> Tensor:
    """Return features (N, D) of images (N, C, H, W) in [0, 1]."""
    return torch.cat([extractor(part) for part in images.split(BATCH)])


def feature_maps(extractor: Any, images: Tensor, grid: Sequence[int]) -> Tensor:
    """Return what EfficientNet-Lite0 pools into its features, averaged to a grid: (N, D, *grid), float16.

    Raises:
        ValueError: for an extractor without a pooling to read from.
    """
    pool = getattr(getattr(extractor, "network", None), "global_pool", None)
    if pool is None:
        raise ValueError("the arm 'aligned' needs feature maps: take features efficientnet-lite0, or leave out the arm")
    maps: list[Tensor] = []

    def keep(module: Any, inputs: tuple[Tensor]) -> None:
        maps.append(F.adaptive_avg_pool2d(inputs[0], tuple(grid)).half())

    handle = pool.register_forward_pre_hook(keep)
    try:
        features_of(extractor, images)
    finally:
        handle.remove()
    return torch.cat(maps)


def middle_grid(latent_size: Sequence[int], levels: int) -> tuple[int, int]:
    """Return height and width of the middle of a UNet with this number of widths, for latents of this size."""
    factor = 2 ** (levels - 2)  # the first width is of the input convolution, the last level is not halved
    height, width = (-(-side // factor) for side in latent_size)
    return height, width
