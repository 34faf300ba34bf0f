"""Settings of measuring, and checks of settings, names, devices and folders."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medfusion_monai.data.datalist import DATALIST_NAME
from medfusion_monai.evaluation.image_set import MANIFEST
from medfusion_monai.report.tables import plain
from medfusion_monai.runtime.values import check_counts

RESERVED = {"reference", "real", "real test"}
"""Names of the real images in tables."""


@dataclass(frozen=True)
class CompareSettings:
    """How ``medfusion compare`` measures.

    Attributes:
        features: of ``load_extractor``; None leaves out what needs features.
        k: neighbours of precision and recall.
        replicates: resampled sets per interval; 0 for none.
        neighbours: generated images shown beside their nearest training images; 0 for none.
        classifier_seeds: one classifier is trained per seed; an empty list leaves the classifier out.
        batch_size: images measured at once.
        device: where to compute.
        resize_mode: how real images are brought to the size of generated ones, or all to a given size: ``crop`` fills
            it and crops the rest, ``pad`` keeps the whole image and adds zeros.
        seed: of all random choices.

    Raises:
        ValueError: for a setting out of range.
    """

    features: str | nn.Module | None = "auto"
    k: int = 3
    replicates: int = 100
    neighbours: int = 8
    classifier_seeds: Sequence[int] = (0, 1, 2)
    batch_size: int = 32
    device: torch.device | str = "cpu"
    resize_mode: str = "crop"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_counts(0, replicates=self.replicates, neighbours=self.neighbours, seed=self.seed)
        check_counts(k=self.k, batch_size=self.batch_size)
        check_seeds(self.classifier_seeds)
        check_device(self.device)
        if self.resize_mode not in ("crop", "pad"):
            raise ValueError(f"resize_mode is {self.resize_mode!r}: use 'crop' or 'pad'")


def check_kinds(
    other_samples: Any, other_autoencoders: Any, splits: Any, sweep_steps: Any, classifier_seeds: Any
) -> None:
    """Raise a ValueError for settings of the wrong type, a common mistake on a command line."""
    for name, value, kind, words in (
        ("other_samples", other_samples, Mapping, "folders by name, as {'StyleGAN-3': '/data/stylegan'}"),
        ("other_autoencoders", other_autoencoders, Mapping, "folders by name, as {'Stable Diffusion': '/data/vae'}"),
        ("splits", ["test"] if splits is None else splits, str | list | tuple, "names, as [test]"),
        ("sweep_steps", sweep_steps, list | tuple, "a list of numbers, as [50,150]"),
        ("classifier_seeds", classifier_seeds, list | tuple, "a list of numbers, as [0,1,2]"),
    ):
        if not isinstance(value, kind):
            raise ValueError(f"{name} must be {words}, received {value!r}")
    if splits is not None and not splits:
        raise ValueError("splits is empty: name at least one, or leave it out")
    check_seeds(classifier_seeds)


def check_seeds(classifier_seeds: Sequence[Any]) -> None:
    """Raise a ValueError unless the seeds are distinct whole numbers."""
    for seed in classifier_seeds:
        check_counts(0, **{"each of classifier_seeds": seed})
    if len(set(classifier_seeds)) < len(classifier_seeds):
        raise ValueError(f"classifier_seeds are {list(classifier_seeds)}: give each once")


def check_names(names: Sequence[str]) -> None:
    """Raise a ValueError unless the names are distinct in tables."""
    if not names:
        raise ValueError("no images to compare: name at least one folder, --images NAME=DIR")
    shown = [plain(name) for name in names]
    if "" in shown or len(set(shown)) < len(shown):
        raise ValueError(f"the sets are named {names}: give each a distinct name, --images NAME=DIR")
    reserved = sorted(RESERVED & set(shown))
    if reserved:
        raise ValueError(f"the names {reserved} are reserved for the real images: use others")


def check_device(device: torch.device | str) -> None:
    """Raise a ValueError if nothing can be computed on the device."""
    try:
        torch.zeros(1, device=device).item()
    except (AssertionError, RuntimeError) as error:  # AssertionError: torch built without CUDA
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device {str(device)!r} cannot be used ({reason}): choose cpu, or cuda on a machine with an NVIDIA GPU"
        ) from error


def refuse_inside(output: str | Path, folders: Mapping[str, str | Path]) -> None:
    """Raise a ValueError if the report would be in a folder all of whose files count as images."""
    for name, folder in folders.items():
        root = Path(os.path.realpath(folder))
        listed = any((root / file).is_file() for file in (DATALIST_NAME, MANIFEST))
        if not listed and Path(os.path.realpath(output)).is_relative_to(root):
            raise ValueError(
                f"output {output} is in the folder of {name}, {folder}, where the report's pictures would count as "
                "images: choose a folder outside"
            )
