"""The images that an audit compares, and their fingerprints."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from medfusion_monai.audit.fingerprints import SIDE, Prints, fingerprint, flipped
from medfusion_monai.data.datalist import find_datalist, read_datalist
from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.evaluation.image_form import ImageFacts
from medfusion_monai.evaluation.image_set import ImageSet
from medfusion_monai.evaluation.metrics.feature_cache import Extraction, cached_features
from medfusion_monai.evaluation.metrics.set_metrics import measure_images

HELD_OUT = ("validation", "test")
"""Splits whose images are not trained on."""
NO_CONCLUSION = (
    "without the training images nothing can be concluded about copies of them, so no number is reported. Give the "
    "folder of the datalist that the model was trained with (--dataset-dir), with all images of its split 'training'"
)


class AuditError(ValueError):
    """An audit that allows no conclusion."""


class RealImages(NamedTuple):
    """Real images and their patients.

    Attributes:
        images: the set.
        patients: one per image.
        places: split of each image and its number in the split, by which a report names it.
    """

    images: ImageSet
    patients: list[str]
    places: list[tuple[str, int]]


class AuditedSet(NamedTuple):
    """A set of images and what is compared.

    Attributes:
        images: the set.
        facts: of its files.
        prints: their fingerprints.
        load: reads an image: path to (C, H, W) in [0, 1].
    """

    images: ImageSet
    facts: Sequence[ImageFacts]
    prints: Prints
    load: Callable[[str], Tensor]

    def stack(self, indices: Sequence[int]) -> Tensor:
        """Read some of the images: (N, C, H, W) in [0, 1]."""
        return torch.stack([self.load(self.images.paths[index]) for index in indices])


def open_training(dataset_dir: str | Path, class_names: Sequence[str] | None = None) -> RealImages:
    """List the training images of a prepared data set.

    Raises:
        AuditError: if they are missing.
    """
    try:
        return _open(dataset_dir, ("training",), class_names, "training")
    except DataError as error:
        raise AuditError(f"{error}\nNo audit: {NO_CONCLUSION}.") from error


def open_held_out(dataset_dir: str | Path, class_names: Sequence[str] | None = None) -> RealImages:
    """List the images of a prepared data set that were not trained on; none if their splits are empty.

    Raises:
        DataError: if a file is missing or an entry is invalid.
    """
    document = json.loads(find_datalist(dataset_dir).read_text(encoding="utf-8"))
    return _open(dataset_dir, [split for split in HELD_OUT if document.get(split)], class_names, "held-out")


def _open(dataset_dir: str | Path, splits: Sequence[str], class_names: Sequence[str] | None, name: str) -> RealImages:
    items, patients, places = [], [], []
    for split in splits:
        for number, item in enumerate(read_datalist(dataset_dir, split, class_names)):
            items.append({"image": item["image"], "label": item["label"]})
            patients.append(str(item["patient"]))
            places.append((split, number))
    path = find_datalist(dataset_dir)
    names = list(class_names or json.loads(path.read_text(encoding="utf-8")).get("class_names") or [])
    if not names:  # a datalist need not name its classes: label k is then called k
        names = [str(label) for label in range(1 + max((item["label"] for item in items), default=0))]
    source = f"{' and '.join(repr(split) for split in splits) or 'no split'} of the data set"
    return RealImages(ImageSet(name, items, names, source), patients, places)


def take_prints(
    images: ImageSet,
    patients: Tensor,
    load: Callable[[str], Tensor],
    axes: Sequence[tuple[int, ...]],
    form: str,
    extraction: Extraction,
) -> Prints:
    """Read all images of a set and return their fingerprints. Several processes read a share each and return all.

    Args:
        images: the set.
        patients: (N,), one number per patient.
        load: reads an image.
        axes: orientations whose features are computed.
        form: a description of ``load``, by which cached features are found.
        extraction: how features are computed and where they are kept.
    """
    paths, extractor = images.paths, extraction.extractor

    def measure(places: range) -> Tensor:
        return fingerprint(torch.stack([load(paths[place]) for place in places]))

    title, batch_size, device = f"read {images.name}", extraction.batch_size, extraction.device
    fine = measure_images(measure, len(paths), batch_size, [SIDE, SIDE], device, title, dtype=torch.half)
    features = torch.empty(0, len(axes), extractor.dimensions)
    if paths:
        features = torch.stack([_features(paths, load, turn, form, extraction) for turn in axes], dim=1)
    return Prints(fine, features, patients)


def _features(
    paths: list[str], load: Callable[[str], Tensor], turn: tuple[int, ...], form: str, extraction: Extraction
) -> Tensor:
    def turned(path: str) -> Tensor:
        return flipped(load(path), turn)

    words = f"{form}, mirrored along {turn}" if turn else form
    return torch.from_numpy(cached_features(extraction, paths, turned, words))
