"""What is measured of an arm: its samples beside the held-out X-rays, and what a classifier learns from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from few_steps import GROUPS
from torch import Tensor

from hospitals.protocol import SHARED, Protocol
from hospitals.sites import ALL, CLASSES, SITES, views_of
from medfusion_monai.data.datalist import read_datalist
from medfusion_monai.evaluation.image_set import open_image_set
from medfusion_monai.evaluation.metrics.classifier import LabelledImages, scores, train_classifier
from medfusion_monai.evaluation.metrics.features import load_extractor
from medfusion_monai.evaluation.metrics.fid import frechet_distance
from medfusion_monai.evaluation.metrics.fidelity import measure_fidelity
from medfusion_monai.evaluation.metrics.label_steering import steering_figures
from medfusion_monai.runtime.seeds import derive_seed

BATCH = 50
FIGURES = ("fid", "precision", "recall")
REPLICATES = 20
"""Resampled sets for the interval of a distance, 0.1 s each."""
Items = Sequence[Mapping[str, Any]]


class TestImages(NamedTuple):
    """The held-out images of all sites: classes, patients (numbers) and views of the items."""

    items: Items
    labels: Tensor
    patients: Tensor
    views: list[str]


class Measuring:
    """Measures arms, each against the same held-out images.

    Args:
        data: folders of the data sets by site, and of ``all``.
        samples: folder of the samples of a model, or of the data set of the shared ones, by name.
        read: reads a file as the trainings did: (C, H, W) in [0, 1].
        protocol: what was chosen before.
    """

    def __init__(
        self,
        data: Mapping[str, Path],
        samples: Callable[[str], Path],
        read: Callable[[str], Tensor],
        protocol: Protocol,
    ) -> None:
        self.data, self.folder, self.read, self.protocol = data, samples, read, protocol

    def arm(self, name: str) -> dict[str, Any]:
        """Return the figures of an arm: ``distance`` and the like, ``label``, and ``scores`` of its classifiers."""
        measured = self.samples(name, self.measured_counts)
        images, labels = self.open(measured)
        label = steering_figures([scores(judge, images) for judge in self.judges], labels, self.protocol.replicates)[1]
        return {**self.beside_test(images), "label": label.as_dict(), **self.taught(self.samples(name))}

    def real(self, name: str) -> dict[str, Any]:
        """Return the same of real training images of a site, or of all; ``label`` is of the test images."""
        training = read_datalist(self.data[name], "training")
        images, _ = self.open(take([training], self.measured_counts, [1.0], derive_seed("real", name)))
        record = {**self.beside_test(images), **self.taught(training)}
        if name != ALL:
            return record
        probabilities = [torch.stack([1 - each, each], dim=1) for each in torch.tensor(record["scores"]).sigmoid()]
        label = steering_figures(probabilities, self.test.labels, self.protocol.replicates)[1]
        return {**record, "label": label.as_dict()}

    def mixed(self, name: str, site: str) -> dict[str, Any]:
        """Return the scores of classifiers of a site's real images together with the samples of an arm."""
        return self.taught([*read_datalist(self.data[site], "training"), *self.samples(name)])

    def samples(self, name: str, counts: Sequence[int] | None = None) -> Items:
        """Return samples of an arm, as many of each class; of shared ones in the ratio of the sites' images."""
        counts = self.protocol.samples if counts is None else counts
        if name != SHARED:
            return take([open_image_set("samples", self.folder(name)).items], counts, [1.0])
        items = read_datalist(self.folder(name), "training")
        sizes = [len(read_datalist(self.data[site], "training")) for site in SITES]
        packages = [[item for item in items if Path(item["image"]).parent.name == f"site{n}"] for n in (1, 2, 3)]
        return take(packages, counts, [size / sum(sizes) for size in sizes])

    def beside_test(self, images: Tensor) -> dict[str, Any]:
        """Return distance, precision and recall of images, and the distance ``without`` each group of them."""
        features, reference = self.features(images), self.reference
        figures = measure_fidelity(reference, features, replicates=REPLICATES)
        groups = torch.arange(len(features)) % GROUPS
        without = [float(frechet_distance(reference, features[groups != group])) for group in range(GROUPS)]
        return {name: figures[name].as_dict() for name in FIGURES} | {"without": without}

    def taught(self, items: Items) -> dict[str, Any]:
        """Return how much more classifiers of these images take each test image for an effusion: log odds."""
        training, tested = LabelledImages(*self.open(items)), self.open(self.test.items)[0]
        trained = [
            train_classifier(training, len(CLASSES), seed, self.protocol.classifier_steps)
            for seed in range(self.protocol.classifiers)
        ]
        values = [scores(each, tested).double()[:, 1].clamp(1e-6, 1 - 1e-6).logit() for each in trained]
        counts = torch.bincount(training.labels, minlength=2).tolist()
        return {"scores": [[round(value, 5) for value in each.tolist()] for each in values], "images": counts}

    def open(self, items: Items) -> tuple[Tensor, Tensor]:
        """Return images (N, C, H, W) in [0, 1] and labels (N,)."""
        labels = torch.tensor([item["label"] for item in items])
        return torch.stack([self.read(item["image"]) for item in items]), labels

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return features (N, D) of images (N, C, H, W) in [0, 1]."""
        return torch.cat([self.extractor(part) for part in images.split(BATCH)])

    @cached_property
    def extractor(self) -> Any:
        """Make the network of the features."""
        return load_extractor("efficientnet-lite0")

    @cached_property
    def reference(self) -> Tensor:
        """Return the features of the test images."""
        return self.features(self.open(self.test.items)[0])

    @cached_property
    def judges(self) -> list[Any]:
        """Train classifiers of all real training images, which judge the labels of samples."""
        training = LabelledImages(*self.open(read_datalist(self.data[ALL], "training")))
        count = self.protocol.classifiers
        return [train_classifier(training, 2, seed, self.protocol.classifier_steps) for seed in range(count)]

    @cached_property
    def test(self) -> TestImages:
        """List the held-out images of all sites."""
        return test_images(self.data[ALL])

    @property
    def measured_counts(self) -> list[int]:
        """How many samples of each class the distance is of: as frequent as in the test."""
        positive = round(self.protocol.measured * float(self.test.labels.double().mean()))
        return [self.protocol.measured - positive, positive]


def test_images(folder: Path) -> TestImages:
    """List the held-out images of a data set of ``prepare_sites``."""
    items, views = read_datalist(folder, "test"), views_of(folder)
    numbers = np.unique([item["patient"] for item in items], return_inverse=True)[1]
    labels = torch.tensor([item["label"] for item in items])
    return TestImages(items, labels, torch.from_numpy(numbers), [views[Path(item["image"]).name] for item in items])


def take(sets: Sequence[Items], counts: Sequence[int], shares: Sequence[float], seed: int | None = None) -> Items:
    """Take as many items of each class, a share of them of each set: the first ones, or a draw.

    Raises:
        ValueError: if a set has too few of a class.
    """
    taken: list[Mapping[str, Any]] = []
    for label, count in enumerate(counts):
        ends = np.round(np.cumsum(shares) * count).astype(int)
        for number, (own, needed) in enumerate(zip(sets, np.diff(ends, prepend=0), strict=True)):
            members = [item for item in own if item["label"] == label]
            if len(members) < needed:
                raise ValueError(f"set {number} has {len(members)} images of label {label}, {needed} are needed")
            order = (
                range(len(members)) if seed is None else np.random.default_rng([seed, label]).permutation(len(members))
            )
            taken += [members[place] for place in list(order)[:needed]]
    return taken
