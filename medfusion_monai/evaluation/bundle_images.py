"""Which images the evaluation of a bundle measures, and whether they can be compared."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose
from torch import Tensor

from medfusion_monai.data.datalist import REFERENCE, read_datalist
from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.data.training.latent_identity import describe_transforms
from medfusion_monai.evaluation.image_form import ImageFacts, ImageForm, exact_form, inspect_set, refuse_changed
from medfusion_monai.evaluation.image_set import MANIFEST, ImageSet, default_reference, open_image_set
from medfusion_monai.evaluation.measured_set import Measured, measure_set
from medfusion_monai.evaluation.metrics.feature_cache import Extraction
from medfusion_monai.model import Model
from medfusion_monai.runtime.distributed import from_first
from medfusion_monai.weights.model_info import is_tuned

logger = logging.getLogger(__name__)

OURS = "Medfusion"
"""What tables call the bundle's own samples and its first stage."""
GAN = "GAN"
"""What they call the samples of weights without latents."""


class BundleImages:
    """Real images, samples of the bundle and images of other generators, each opened on first use.

    Args:
        model: defines class names, image size and channels.
        dataset_dir: folder of the datalist.
        preprocessing: reads an item of the datalist.
        splits: of the datalist, whose images are reconstructed; None takes ``test``, and ``reference`` if there is one.
        reference_split: of the datalist, whose images generated ones are compared with; None takes ``reference`` if
            there is one, else ``test``.
        samples_dir: folder that inference wrote; without samples in it, or None, they are left out.
        other_samples: folders of other generators' images, by name.
    """

    def __init__(
        self,
        model: Model,
        dataset_dir: str | Path,
        preprocessing: Compose,
        splits: str | Sequence[str] | None = None,
        reference_split: str | None = None,
        samples_dir: str | Path | None = None,
        other_samples: Mapping[str, str] | None = None,
    ) -> None:
        self.class_names, self.size, self.channels = model.class_names, model.image_size, model.image_channels
        self.has_latents = model.has_latents
        self.is_tuned = is_tuned(model.info)
        self.ours = OURS if model.has_latents else GAN
        self.dataset_dir, self.preprocessing = dataset_dir, preprocessing
        self.splits, self._reference_split = splits, reference_split
        self.samples_dir, self.other_samples = samples_dir, other_samples or {}
        self.form = json.dumps(describe_transforms(preprocessing))  # cached features are reused only for the same
        self.warnings: list[str] = []
        self.opened: dict[str, ImageSet] = {}

    @cached_property
    def reference_split(self) -> str:
        """The split that generated images are compared with."""
        return self._reference_split or default_reference(self.dataset_dir)

    @cached_property
    def items(self) -> list[dict[str, Any]]:
        """The images that are reconstructed, with ``split`` and their ``number`` in it.

        Raises:
            DataError: see ``read_datalist``.
        """
        splits = self.splits
        if splits is None:
            splits = ["test", REFERENCE] if default_reference(self.dataset_dir) == REFERENCE else ["test"]
        return [
            {**item, "split": split, "number": number}
            for split in dict.fromkeys([splits] if isinstance(splits, str) else splits)
            for number, item in enumerate(read_datalist(self.dataset_dir, split, self.class_names))
        ]

    @cached_property
    def sample_sets(self) -> list[tuple[ImageSet, ImageForm, list[ImageFacts]]]:
        """The sets of generated images, each decoded once.

        Raises:
            DataError: for a set that is missing, unreadable, or of another size or colour than the bundle's.
        """
        return from_first(self._open_samples)

    def _open_samples(self) -> list[tuple[ImageSet, ImageForm, list[ImageFacts]]]:
        folders = dict(self.other_samples)
        if self.samples_dir is not None and os.path.isfile(Path(self.samples_dir) / MANIFEST):
            folders = {self.ours: str(self.samples_dir), **folders}
        elif self.samples_dir is not None:
            logger.warning("no samples of inference in %s: none are measured", self.samples_dir)
            self.warnings.append(
                f"Samples of this model were not measured: the folder '{Path(self.samples_dir).name}' contains no "
                f"{MANIFEST}, which inference writes."
            )
        opened = []
        for name, folder in folders.items():
            images = open_image_set(name, folder)
            facts = inspect_set(images)
            opened.append((images, exact_form(name, facts, self.size, self.channels), facts))
        return opened

    def check_real(self, neighbours: int, classifier_seeds: Sequence[int]) -> None:
        """Raise a DataError if the datalist lacks a split that generated images are compared with.

        Args:
            neighbours: nearest training images need the split ``training``, unless this is 0.
            classifier_seeds: the classifier needs ``training`` and ``test``, unless there are none.
        """
        if len(self.open(self.reference_split).items) < 2:
            raise DataError(
                f"split '{self.reference_split}': a single image has no spread to compare generated ones with. Prepare "
                "the data with more, or measure reconstructions only (--samples_dir null, no --sweep_steps)."
            )
        if not self.sample_sets:
            return
        try:
            if neighbours or classifier_seeds:
                self.open("training")
            if classifier_seeds:
                self.open("test")
        except DataError as error:
            raise DataError(
                f"{error} Or leave out the parts that need this split: --neighbours 0 --classifier_seeds '[]'."
            ) from error

    def refuse_changed(self) -> None:
        """Raise a DataError if generated images were changed since they were opened."""
        for images, _, facts in self.sample_sets:
            refuse_changed(images, facts)

    def load(self, path: str) -> Tensor:
        """Read a real image as the bundle does: (C, H, W) in [0, 1]."""
        return torch.as_tensor(self.preprocessing({"image": path})["image"])

    def open(self, split: str) -> ImageSet:
        """Open a split, once: opening checks that every file exists."""
        if split not in self.opened:
            self.opened[split] = open_image_set(split, self.dataset_dir, split, self.class_names)
        return self.opened[split]

    def measure_split(self, split: str, name: str, extraction: Extraction) -> Measured:
        """Compute the features of a split, which tables call ``name``."""
        return measure_set(self.open(split)._replace(name=name), self.load, self.form, extraction)

    def measure_samples(self, extraction: Extraction) -> list[Measured]:
        """Compute the features of all generated images."""
        return [
            measure_set(images, form.load, form.describe(), extraction, facts)
            for images, form, facts in self.sample_sets
        ]
