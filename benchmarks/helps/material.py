"""What a study is of: two classes of a data set, the samples of a model, and what each image is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from helps.draws import Pool
from medfusion_monai.data.datalist import read_datalist
from medfusion_monai.data.pixels import digests_of, fingerprint, record_digests, refuse_repeats
from medfusion_monai.data.preparing.splits import SPLITS, DataError
from medfusion_monai.evaluation.image_set import open_image_set, read_manifest
from medfusion_monai.evaluation.metrics.feature_cache import Extraction, cached_features
from medfusion_monai.export.public import weights_at
from medfusion_monai.model import Model, make_preprocessing
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.sampling.plan import MANIFEST
from medfusion_monai.weights.places import missing_weights

CHUNK = 500
"""Images whose features are one file: as much is lost when a study is stopped."""
Item = Mapping[str, Any]


class Material(NamedTuple):
    """Images of two classes; ``label`` is 0 for the negative class and 1 for the positive one.

    Attributes:
        class_names: negative and positive.
        training: items of the training split.
        test: items of the validation and test splits.
        samples: items of the generated images.
        fingerprint: of the whole training split, other classes included.
        model: whose samples they are.
    """

    class_names: tuple[str, str]
    training: list[dict[str, Any]]
    test: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    fingerprint: str
    model: Model

    @property
    def files(self) -> list[str]:
        """All images: training, test, samples."""
        return [item["image"] for item in (*self.training, *self.test, *self.samples)]

    def identity(self) -> dict[str, Any]:
        """Return what a study of these images is recognised by."""
        return {
            "class_names": list(self.class_names),
            "training_images": self.fingerprint,
            "test_images": fingerprint(self.test),
            "samples": fingerprint(self.samples),
        }

    def load(self) -> Callable[[str], Tensor]:
        """Return what reads a file as the model's training did: (C, H, W) in [0, 1]."""
        read: Any = make_preprocessing(self.model)
        return lambda path: torch.as_tensor(read({"image": path})["image"])

    def pool(self, inputs: Any) -> Pool:
        """Return all images by their positions, with what a network sees of them."""
        real = [*self.training, *self.test]
        patients = np.unique([item["patient"] for item in real], return_inverse=True)[1]
        ends = np.cumsum([len(self.training), len(self.test), len(self.samples)]).tolist()
        return Pool(
            inputs,
            torch.tensor([item["label"] for item in (*real, *self.samples)]),
            torch.cat([torch.from_numpy(patients), torch.full((len(self.samples),), -1)]),
            torch.arange(ends[0]),
            torch.arange(ends[0], ends[1]),
            torch.arange(ends[1], ends[2]),
        )

    def features(self, extraction: Extraction) -> Tensor:
        """Return the features (M, D) of all images, from the cache as far as they are there."""
        load, size = self.load(), "x".join(map(str, self.model.image_size))
        chunks = [files[start : start + CHUNK] for files in self._by_set() for start in range(0, len(files), CHUNK)]
        parts = [cached_features(extraction, chunk, load, f"as trained, {size}") for chunk in tqdm(chunks, "features")]
        return torch.from_numpy(np.concatenate(parts))

    def inference(self, counts: Sequence[int], output: str | Path) -> str:
        """Return the command that writes as many samples of both classes."""
        return (
            f"python -m monai.bundle run inference --config_file configs/inference.yaml --label "
            f'"{list(self.class_names)}" --num_samples "{list(counts)}" --model_dir {self.model.path.parent} '
            f"--output_dir {output}"
        )

    def _by_set(self) -> list[list[str]]:
        return [[item["image"] for item in items] for items in (self.training, self.test, self.samples)]


def read_material(
    dataset_dir: str | Path, samples_dir: str | Path, model_file: str | Path, classes: Sequence[str] | None = None
) -> Material:
    """List the images of a study.

    Args:
        dataset_dir: folder of ``medfusion prepare``.
        samples_dir: folder that inference wrote.
        model_file: the weights that the samples are of, or a folder that contains them.
        classes: names of the negative and the positive class; None for a data set of two classes, in label order.

    Raises:
        DataError: for classes that are not there, a patient or an image in two splits, or samples without a manifest.
        WeightsError: if the samples are of other weights, or the weights were trained on other images than the
            training split, or do not say on which.
    """
    known = open_image_set("real images", dataset_dir, "training").class_names
    names = _chosen(known, classes)
    splits = {name: read_datalist(dataset_dir, name) for name in SPLITS}
    for items in splits.values():
        record_digests(items, digests_of(items))
    refuse_repeats(splits, known)
    found = fingerprint(splits["training"])
    model = _model_of(samples_dir, model_file)
    _refuse_other_training(model, found, dataset_dir)
    return Material(
        names,
        _of_classes(splits["training"], known, names),
        _of_classes([*splits["validation"], *splits["test"]], known, names),
        _samples(samples_dir, names),
        found,
        model,
    )


def _chosen(known: Sequence[str], classes: Sequence[str] | None) -> tuple[str, str]:
    chosen = list(known if classes is None else classes)
    if len(chosen) != 2 or len(set(chosen)) != 2 or not set(chosen) <= set(known):
        given = "without --classes" if classes is None else f"--classes {' '.join(chosen)}"
        raise DataError(
            f"{given}: a study is of two classes, the negative first. Give --classes with two of {', '.join(known)}."
        )
    return chosen[0], chosen[1]


def _of_classes(items: Sequence[Item], known: Sequence[str], names: Sequence[str]) -> list[dict[str, Any]]:
    labels = {list(known).index(name): label for label, name in enumerate(names)}
    return [{**item, "label": labels[item["label"]]} for item in items if item["label"] in labels]


def _samples(samples_dir: str | Path, names: Sequence[str]) -> list[dict[str, Any]]:
    images = open_image_set("samples", samples_dir)
    lacking = [name for name in names if name not in images.class_names]
    if lacking:
        raise DataError(
            f"{samples_dir}: has samples of {', '.join(images.class_names)}, none of {', '.join(lacking)}. Sample both "
            "classes of the study."
        )
    return _of_classes(images.items, images.class_names, names)


def _model_of(samples_dir: str | Path, model_file: str | Path) -> Model:
    """Return the description of the weights of samples.

    Raises:
        DataError: for samples without a manifest.
        WeightsError: if the weights are missing, or others.
    """
    manifest = Path(samples_dir) / MANIFEST
    if not manifest.is_file():
        raise DataError(f"'{samples_dir}' has no {MANIFEST}: name a folder that run inference wrote.")
    path = weights_at(model_file)
    if not path.is_file():
        raise WeightsError(missing_weights(path))
    own = file_sha256(path)
    others = {row.get("weights_sha256") or "unknown" for row in read_manifest(manifest).values()} - {own}
    if others:
        found = ", ".join(sorted(each[:12] for each in others))
        raise WeightsError(
            f"{manifest}: has samples of other weights (SHA-256 {found}) than {path} ({own[:12]}). Give those that all "
            "samples are of as --model-file."
        )
    return Model(path)


def _refuse_other_training(model: Model, found: str, dataset_dir: str | Path) -> None:
    if model.trained_on != found:
        said = f"has the fingerprint {model.trained_on}" if model.trained_on else "does not say on which"
        raise WeightsError(
            f"{model.path}: was not trained on the training split of {dataset_dir} (fingerprint {found}; the "
            f"description of the weights {said}). It may have seen the test patients: use samples of a model that was "
            "trained on this data set."
        )
