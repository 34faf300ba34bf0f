"""The model that is audited: its networks, how it reads images, and what its loss tells of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import Dataset

from medfusion_monai.audit.membership import TIMESTEPS, denoising_losses, membership_figures, membership_scores
from medfusion_monai.audit.statistics import LEAST
from medfusion_monai.bundle import check_image_size, load_model
from medfusion_monai.configs import build, read_configs
from medfusion_monai.diffusion.randomness import derive_seed
from medfusion_monai.metrics.intervals import Figure
from medfusion_monai.weights.model_info import read_model_info
from medfusion_monai.weights.state_dict import WeightsError, file_sha256

NEEDS_MODEL = "needs the model's weights: give --bundle and --model-file"


class Model(NamedTuple):
    """A trained model and how it reads images.

    Attributes:
        network: a ``Medfusion`` with its weights.
        schedule: of its noise.
        class_names: in label order.
        image_size: height and width.
        preprocessing: reads an item of the datalist.
        sha256: of the weights file.
        training_images: ``fingerprint`` of the images that it was trained on; None if nothing says so.
    """

    network: Any
    schedule: Any
    class_names: list[str]
    image_size: tuple[int, int]
    preprocessing: Callable[[Mapping[str, Any]], Any]
    sha256: str
    training_images: str | None = None


def load_audited_model(
    bundle: str | Path,
    model_file: str | Path,
    overlays: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Model:
    """Build a bundle's networks and load weights into them.

    Args:
        bundle: folder of the bundle.
        model_file: ``models/model.pt``.
        overlays: files of ``configs`` that were merged after ``train.yaml`` in the training.
        overrides: keys that were given on the command line of the training.

    Raises:
        ValueError: for settings or weights that do not fit.
    """
    if not Path(model_file).is_file():
        raise WeightsError(f"weights {model_file} do not exist: name models/model.pt of the training")
    parser = read_configs(bundle, ["evaluate.yaml", *overlays], overrides)
    network, class_names = build(parser, "network_def"), list(build(parser, "class_names"))
    height, width = build(parser, "image_size")
    check_image_size([height, width], network.autoencoder.downsampling_factor)
    load_model(network, model_file, **build(parser, "model_settings"))
    return Model(
        network,
        build(parser, "schedule"),
        class_names,
        (height, width),
        build(parser, "preprocessing"),
        file_sha256(model_file),
        (read_model_info(model_file) or {}).get("training_images"),
    )


def membership_of(
    model: Model,
    training: Sequence[Mapping[str, Any]],
    held_out: Sequence[Mapping[str, Any]],
    most: int = 1000,
    replicates: int = 1000,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Tell how well the denoising loss separates training images from others, read alike and of the same classes.

    Args:
        model: that is audited.
        training: items with ``image`` (path) and ``label``.
        held_out: likewise of images that no training has seen.
        most: images at most of each set.
        replicates: resampled sets behind the intervals.
        batch_size: images at once.
        device: where to compute.
        seed: of the choice of images, their noise and the resampling.

    Returns:
        Figures ``auc`` and ``tpr_at_1_fpr``, ``images`` of each set, ``timesteps``; a figure that is withheld says why.
    """
    chosen = balanced(training, held_out, most, seed)
    count = len(chosen[0])
    if count < LEAST:
        note = f"withheld: {count} images of each set, in equal classes; at least {LEAST} are needed"
        return {"auc": Figure(None, note=note).as_dict()}
    losses = []
    for items in chosen:
        dataset: Any = Dataset(items, model.preprocessing)
        losses.append(denoising_losses(model.network, model.schedule, dataset, TIMESTEPS, 2, seed, batch_size, device))
    figures = membership_figures(*membership_scores(*losses), replicates=replicates, seed=seed)
    told = {name: figure.as_dict() for name, figure in figures.items()}
    return {**told, "images": count, "timesteps": list(TIMESTEPS)}


def balanced(
    training: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]], most: int, seed: int = 0
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Draw as many items of each class from one set as from the other, about ``most`` in all at most."""
    share = min(1.0, most / max(1, len(held_out)))
    chosen: tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]] = ([], [])
    for label in sorted({item["label"] for item in held_out}):
        members = [[item for item in items if item["label"] == label] for items in (training, held_out)]
        number = min(len(members[0]), round(share * len(members[1])))
        for place, (items, kept) in enumerate(zip(members, chosen, strict=True)):
            order = np.random.default_rng(derive_seed("membership", seed, place, label)).permutation(len(items))
            kept += [items[index] for index in sorted(order[:number].tolist())]
    return chosen
