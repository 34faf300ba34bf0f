"""The real images of a prepared data set, which pages show beside generated ones.

RealData(model, dataset_dir)
.split -> str;  .counts -> list[int], images per class in label order
.image(label, place) -> Tensor (C, H, W) in [0, 1]
.matcher(step) -> Matcher;  .training -> ImageSet      # for the nearest training images
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from medfusion_monai.audit.fingerprints import Prints, fingerprint
from medfusion_monai.audit.matching import Matcher
from medfusion_monai.audit.sets import RealImages, open_held_out, open_training
from medfusion_monai.data.datalist import find_datalist, read_datalist
from medfusion_monai.data.pixels import fingerprint as list_fingerprint
from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.evaluation.image_set import ImageSet
from medfusion_monai.model import Model, make_preprocessing

SHOWN = ("test", "validation", "training")
"""Splits by preference: images that the model was not trained on come first."""
BATCH_SIZE = 64


class RealData:
    """Real images of the model's classes, read one by one as they are shown.

    Args:
        model: with its classes and its way of reading images.
        dataset_dir: folder of ``datalist.json``.

    Raises:
        DataError: for a missing or invalid datalist, missing files, or other classes than the model's.
    """

    def __init__(self, model: Model, dataset_dir: str | Path) -> None:
        self.model, self.dataset_dir = model, dataset_dir
        document = json.loads(find_datalist(dataset_dir).read_text(encoding="utf-8"))
        self.split = next((split for split in SHOWN if document.get(split)), SHOWN[0])
        items = read_datalist(dataset_dir, self.split, model.class_names)
        labels = range(len(model.class_names))
        self._paths = [[item["image"] for item in items if item["label"] == label] for label in labels]
        self._read = make_preprocessing(model)
        self._matcher: Matcher | None = None

    @property
    def counts(self) -> list[int]:
        """Images of each class, in label order."""
        return [len(paths) for paths in self._paths]

    def image(self, label: int, place: int) -> Tensor:
        """Return an image of a class, (C, H, W) in [0, 1], of the model's size.

        Raises:
            DataError: if its file cannot be read.
        """
        return self._load(self._paths[label][place])

    @cached_property
    def training(self) -> ImageSet:
        """The images of split ``training``."""
        return self._training.images

    def training_image(self, place: int) -> Tensor:
        """Return a training image, (C, H, W) in [0, 1]."""
        return self._load(self.training.paths[place])

    def matcher(self, step: Callable[[], None]) -> Matcher:
        """Return what finds the nearest training images; the first call reads all images.

        Args:
            step: called per batch of images, of which there are ``matcher_steps``.

        Raises:
            ValueError: if the model was trained on other images, or there are too few.
        """
        if self._matcher is None:
            self._refuse_other_training()
            numbers = {name: number for number, name in enumerate(dict.fromkeys(self._patients))}
            training, held_out = (self._prints(real, numbers, step) for real in (self._training, self._held_out))
            self._matcher = Matcher(training, held_out)
        return self._matcher

    @property
    def matcher_steps(self) -> int:
        """Batches that ``matcher`` still has to read."""
        if self._matcher is not None:
            return 0
        return sum(-(-len(real.images.items) // BATCH_SIZE) for real in (self._training, self._held_out))

    @cached_property
    def _training(self) -> RealImages:
        return open_training(self.dataset_dir, self.model.class_names)

    @cached_property
    def _held_out(self) -> RealImages:
        return open_held_out(self.dataset_dir, self.model.class_names)

    @property
    def _patients(self) -> list[str]:
        return [*self._training.patients, *self._held_out.patients]

    def _refuse_other_training(self) -> None:
        trained_on = self.model.trained_on
        if trained_on is not None and list_fingerprint(read_datalist(self.dataset_dir, "training")) != trained_on:
            raise DataError(
                "the model was trained on other images, or with other labels, than those of split 'training' of "
                "--data, so that the nearest ones say nothing. Name the data set that it was trained with"
            )

    def _prints(self, real: RealImages, numbers: dict[str, int], step: Callable[[], None]) -> Prints:
        fine, paths = [], real.images.paths
        for start in range(0, len(paths), BATCH_SIZE):
            step()
            fine.append(fingerprint(torch.stack([self._load(path) for path in paths[start : start + BATCH_SIZE]])))
        patients = torch.tensor([numbers[name] for name in real.patients], dtype=torch.long)
        return Prints(torch.cat(fine) if fine else torch.empty(0, 64, 64), None, patients)

    def _load(self, path: str) -> Tensor:
        return torch.as_tensor(self._read({"image": path})["image"])
