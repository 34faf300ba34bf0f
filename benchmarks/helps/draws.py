"""Which patients and samples a training gets: drawn by patient and class, from seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from helps.protocol import FEWEST, TUNING, Arm, Protocol
from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.evaluation.metrics.intervals import bootstrap_weights
from medfusion_monai.runtime.seeds import derive_seed


class Pool(NamedTuple):
    """All images of a study, one after another.

    Attributes:
        inputs: what a network sees, by a tensor of positions: features (M, D), or ``ImageFiles``.
        labels: (M,), 0 negative, 1 positive.
        patients: (M,), numbers; -1 for samples.
        training: positions of the images of the training split.
        test: positions of the images of the validation and test splits.
        samples: positions of the generated images.
    """

    inputs: Any
    labels: Tensor
    patients: Tensor
    training: Tensor
    test: Tensor
    samples: Tensor


class Part(NamedTuple):
    """Positions of the real images of one training, and of those that it is stopped by."""

    real: Tensor
    tuning: Tensor


def draw_part(pool: Pool, seed: int, fraction: float) -> Part:
    """Draw the tuning patients of a split, and a share of its other patients; smaller shares lie in larger ones."""
    training = pool.training
    held = draw_patients(pool.labels[training], pool.patients[training], TUNING, derive_seed("tuning", seed))
    tuning, rest = training[held], training[~held]
    chosen = draw_patients(pool.labels[rest], pool.patients[rest], fraction, derive_seed("fraction", seed))
    return Part(rest[chosen], tuning)


def draw_patients(labels: Tensor, patients: Tensor, share: float, seed: int) -> Tensor:
    """Draw a share of the patients of each class, at least one; a patient counts for its highest label.

    Returns:
        (N,), whether an image is of one of them.
    """
    inverse, highest = patient_classes(labels, patients)
    generator = np.random.default_rng(seed)
    taken = torch.zeros(len(highest), dtype=torch.bool)
    for label in highest.unique():
        members = (highest == label).nonzero()[:, 0]
        order = torch.from_numpy(generator.permutation(len(members)))
        taken[members[order[: max(1, round(share * len(members)))]]] = True
    return taken[inverse]


def patient_classes(labels: Tensor, patients: Tensor) -> tuple[Tensor, Tensor]:
    """Return the patient (N,) of each image, numbered from 0, and the highest label of each patient."""
    numbers, inverse = patients.unique(return_inverse=True)
    return inverse, torch.zeros(len(numbers), dtype=labels.dtype).scatter_reduce(0, inverse, labels, "amax")


def resample_patients(labels: Tensor, patients: Tensor, replicates: int, seed: int = 0) -> Tensor:
    """Return how often each image occurs (R, N) in sets of patients resampled within their class."""
    inverse, highest = patient_classes(labels, patients)
    generator = np.random.default_rng(derive_seed("test patients", seed))
    weights = torch.zeros(replicates, len(highest), dtype=torch.float64)
    for label in highest.unique():
        members = (highest == label).nonzero()[:, 0]
        weights[:, members] = bootstrap_weights(len(members), replicates, generator)
    return weights[:, inverse]


def counts_of(labels: Tensor) -> list[int]:
    """Return the number of negative and positive images."""
    return torch.bincount(labels, minlength=2).tolist()


def needed(pool: Pool, arm: Arm, part: Part) -> list[int]:
    """Return the number of negative and positive samples that an arm needs: a multiple of its real images."""
    return [arm.ratio * count for count in counts_of(pool.labels[part.real])]


def draw_samples(pool: Pool, counts: Sequence[int], seed: int) -> Tensor:
    """Draw as many samples of each class; smaller sets of a seed lie in larger ones.

    Raises:
        ValueError: there are not so many.
    """
    chosen = []
    for label, count in enumerate(counts):
        members = pool.samples[pool.labels[pool.samples] == label]
        if len(members) < count:
            raise ValueError(f"{count} samples of label {label} were asked for, there are {len(members)}")
        order = np.random.default_rng(derive_seed("samples", seed, label)).permutation(len(members))
        chosen.append(members[torch.from_numpy(order[:count])])
    return torch.cat(chosen)


def refuse_small_sets(pool: Pool, protocol: Protocol, class_names: Sequence[str]) -> None:
    """Raise if a patient of the test is in training, or a set has fewer than ten images of a class.

    Raises:
        DataError: with the first such set.
    """
    shared = set(pool.patients[pool.training].tolist()) & set(pool.patients[pool.test].tolist())
    if shared:
        raise DataError(f"{len(shared)} patients are in training and test. Prepare the data again.")
    sets = {"the validation and test splits together": pool.test}
    for seed, fraction in protocol.parts():
        part = draw_part(pool, seed, fraction)
        sets[f"{fraction:.0%} of the training patients of split {seed}"] = part.real
        sets[f"the tuning patients of split {seed}"] = part.tuning
    for name, places in sets.items():
        for class_name, count in zip(class_names, counts_of(pool.labels[places]), strict=True):
            if count < FEWEST:
                raise DataError(
                    f"{name}: {count} images of '{class_name}', but each class needs {FEWEST}. Use a larger data set."
                )
