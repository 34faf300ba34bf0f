"""Whether a generator's labels steer, and whether its images are useful: classifiers of real and generated images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medfusion_monai.evaluation.metrics.classifier import LabelledImages, class_counts, scores, train_classifier
from medfusion_monai.evaluation.metrics.intervals import Figure, share_figure
from medfusion_monai.runtime.seeds import derive_seed

logger = logging.getLogger(__name__)

FEWEST = 10
"""Images that each class needs for training and for testing: with fewer, chance decides."""

NOTE = (
    "Accuracy is balanced: the mean over classes of the share of correct answers, so guessing gives one over the "
    "number of classes whatever their sizes. Guessing gives an AUC of 0.5 (for more than two classes, the mean of each "
    "class against the rest). Every classifier is trained for the same number of steps, with all classes equally "
    "often. Figures are means over trainings; 95% intervals cover the sampling of the test images and the randomness "
    "of training, not the sampling of the training images. The label steers to the extent that a classifier trained "
    "on real images agrees with the labels of generated images as it does with those of real ones. The answer is by "
    "its AUC: unanswerable if the interval on real images reaches below 0.6, near guessing; otherwise no if the "
    "interval on generated images reaches 0.5, yes if its distance from 0.5 is at least 80% of that on real images, "
    "else partly."
)
"""How to read the rows."""

NEAR_CHANCE = 0.6
"""AUC on real images that the interval of the classifier must exceed before it can judge generated ones."""
STEERED_SHARE = 0.8
"""Share of the classifier's advantage over guessing on real images that the answer "yes" takes on generated ones."""

_REPLICATES_AT_A_TIME = 50  # bounds the memory of the weights


def label_steering(
    train: LabelledImages,
    test: LabelledImages,
    generated: Mapping[str, LabelledImages],
    class_names: Sequence[str],
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 300,
    size: int = 64,
    flip: bool = False,
    replicates: int = 1000,
    device: torch.device | str = "cpu",
) -> list[dict[str, Any]]:
    """Train classifiers on real images, on generated ones and on both, and test them.

    Trained on real images and tested on generated ones, they show whether the label steers; the same test on real
    images is the comparison. Trained on generated images, alone or together with real ones, and tested on real ones,
    they show how useful the images are downstream.

    Args:
        train: real images that the generator was trained on.
        test: held-out real images, of other patients.
        generated: generated images with the requested labels, by the generator's name.
        class_names: in label order.
        seeds: one training per seed, the same for every training set.
        steps: of each training, for any training set.
        size: height and width that the classifier works at.
        flip: mirror images in training; for tissue, not for chests or eyes.
        replicates: resampled test sets and trainings per interval; fewer than two leave it out.
        device: where to train.

    Returns:
        Rows with ``trained_on``, ``tested_on``, ``train_count``, ``test_count``, ``seeds`` and, as dictionaries of
        ``Figure``, ``accuracy`` (balanced) and ``auc``. If a class has fewer than ten images in a set, the values that
        need the set are None, with a note. See ``NOTE``.

    Raises:
        ValueError: for fewer than two classes, no seed, a label out of range, a set without images, or sets that differ
            in their channels.
    """
    sets = {"real": train, "real test": test, **generated}
    _check(sets, len(generated), class_names, seeds)
    regimes = [("real", lambda: train, {"real test": test, **generated})]
    regimes += [(name, partial(generated.__getitem__, name), {"real test": test}) for name in generated]
    # Joined one by one: a set may take gigabytes.
    regimes += [(f"real and {name}", partial(_both, train, generated[name]), {"real test": test}) for name in generated]
    problems = {name: _problem(name, images, class_names) for name, images in sets.items()}
    problems |= {f"real and {name}": problems["real"] or problems[name] for name in generated}
    rows = []
    for trained_on, join, tests in regimes:
        images = join()
        logger.info("classifiers of %d images: %s", len(images.labels), trained_on)
        able = {} if problems[trained_on] else {name: each for name, each in tests.items() if not problems[name]}
        settings = {"steps": steps, "size": size, "flip": flip, "device": device}
        probabilities = _trained_scores(images, able, len(class_names), seeds, settings)
        for name, tested in tests.items():
            if name in able:
                accuracy, auc = steering_figures(probabilities[name], tested.labels, replicates)
            else:
                accuracy = auc = Figure(None, note=problems[trained_on] or problems[name])
            counts = {"train_count": len(images.labels), "test_count": len(tested.labels), "seeds": len(seeds)}
            figures = {"accuracy": accuracy.as_dict(), "auc": auc.as_dict()}
            rows.append({"trained_on": trained_on, "tested_on": name, **counts, **figures})
    return rows


def steering_answers(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Answer whether the label steers each set of generated images, by the rule in ``NOTE``.

    Args:
        rows: of ``label_steering``.

    Returns:
        By the set's name, ``answer`` (yes, partly, no or unanswerable) and ``why``.
    """
    areas = {row["tested_on"]: row["auc"] for row in rows if row["trained_on"] == "real"}
    judge = areas.pop("real test")
    return {name: _answer(judge, area) for name, area in areas.items()}


def _answer(judge: Mapping[str, Any], area: Mapping[str, Any]) -> dict[str, str]:
    for figure in (judge, area):
        if figure["value"] is None:
            return {"answer": "unanswerable", "why": figure["note"]}
    if _lowest(judge) < NEAR_CHANCE:
        why = f"the classifier itself is near guessing on real images, AUC {_shown(judge)}"
        return {"answer": "unanswerable", "why": why}
    share = (area["value"] - 0.5) / (judge["value"] - 0.5)
    answer = "no" if _lowest(area) <= 0.5 else "yes" if share >= STEERED_SHARE else "partly"
    return {"answer": answer, "why": f"AUC {_shown(area)} on generated images, {_shown(judge)} on real ones"}


def _lowest(figure: Mapping[str, Any]) -> float:
    return float(figure["value"] if figure["low"] is None else figure["low"])


def _shown(figure: Mapping[str, Any]) -> str:
    interval = "" if figure["low"] is None else f" [{figure['low']:.2f} to {figure['high']:.2f}]"
    return f"{figure['value']:.2f}{interval}"


def steering_figures(
    probabilities: Sequence[Tensor], labels: Tensor, replicates: int = 1000, seed: int = 0
) -> tuple[Figure, Figure]:
    """Balanced accuracy and AUC, averaged over trainings, with 95% intervals by Wilson's score.

    AUC is a share of pairs, and its score interval (Newcombe 2006) takes its variance from resampling, as accuracy's
    does: percentiles of an AUC near 1 hardly vary. Each replicate resamples the trainings, and the test images within
    their classes, the same for all trainings. Of S trainings, S - 1 are drawn, which shows the variance of their mean
    without bias (McCarthy and Snowden 1985); one training shows none.

    Args:
        probabilities: (N, classes) per training.
        labels: (N,), each class at least once.
        replicates: fewer than two leave the intervals out.
        seed: of the resampling.

    Returns:
        Accuracy and AUC.
    """
    whole = torch.ones(1, len(labels), dtype=torch.float64)
    measures = (balanced_accuracies, areas_under_curve)
    values = [torch.stack([measure(each, labels, whole) for each in probabilities]).mean() for measure in measures]
    generator = np.random.default_rng(derive_seed("label steering", seed))
    resampled: tuple[list[Tensor], ...] = ([], [])
    drawn = max(1, len(probabilities) - 1)
    for start in range(0, replicates, _REPLICATES_AT_A_TIME):
        number = min(_REPLICATES_AT_A_TIME, replicates - start)
        images = _resampled_within_classes(labels, number, generator)
        trainings = torch.from_numpy(generator.multinomial(drawn, _equal(len(probabilities)), number))
        for measure, parts in zip(measures, resampled, strict=True):
            each = torch.stack([measure(one, labels, images) for one in probabilities], dim=1)
            parts.append((each * trainings).sum(dim=1) / drawn)
    trainings_note = "" if len(probabilities) > 1 else "one training: the interval covers the test images only"
    fewest = int(torch.bincount(labels).min())
    accuracy, auc = (float(value) for value in values)
    if replicates < 2:
        return Figure(accuracy), Figure(auc)
    accuracies, areas = (torch.cat(parts) for parts in resampled)
    count = fewest * probabilities[0].shape[1]
    return (
        share_figure(accuracy, count, accuracies, trainings_note),
        share_figure(auc, count, areas, trainings_note),
    )


def balanced_accuracies(probabilities: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Mean over the classes of the share of images whose own class has the highest probability.

    Args:
        probabilities: (N, classes).
        labels: (N,), each class at least once.
        weights: (R, N), how often each image occurs in each of R resampled sets, each class at least once.

    Returns:
        (R,).
    """
    members = torch.nn.functional.one_hot(labels, probabilities.shape[1]).double()
    right = (probabilities.argmax(dim=1) == labels).double()
    return ((weights @ (members * right[:, None])) / (weights @ members)).mean(dim=1)


def areas_under_curve(probabilities: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Area under the ROC curve; for more than two classes, the mean of each against the rest.

    By ranks (Hanley and McNeil 1982): the share of pairs of an image of the class and another one in which the first
    has the higher probability, counting ties by half. For all resampled sets at once, unlike torchmetrics.

    Args:
        probabilities: (N, classes).
        labels: (N,), each class at least once.
        weights: (R, N), as in ``balanced_accuracies``.

    Returns:
        (R,).
    """
    number = probabilities.shape[1]
    areas = [
        _area(probabilities[:, label], labels == label, weights) for label in range(1 if number == 2 else 0, number)
    ]
    return torch.stack(areas).mean(dim=0)


def _area(values: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    """Share of pairs of a positive and a negative image in which the positive has the higher value."""
    distinct, places = values.unique(return_inverse=True)
    empty = weights.new_zeros(len(weights), len(distinct))
    positives = empty.index_add(1, places, weights * positive)
    negatives = empty.index_add(1, places, weights * ~positive)
    below = negatives.cumsum(dim=1) - 0.5 * negatives
    return (positives * below).sum(dim=1) / (positives.sum(dim=1) * negatives.sum(dim=1))


def _trained_scores(
    images: LabelledImages,
    tests: Mapping[str, LabelledImages],
    num_classes: int,
    seeds: Sequence[int],
    settings: Mapping[str, Any],
) -> dict[str, list[Tensor]]:
    """Train once per seed, and return each test set's probabilities for every training."""
    probabilities: dict[str, list[Tensor]] = {name: [] for name in tests}
    for seed in seeds if tests else ():
        classifier = train_classifier(images, num_classes, seed=seed, **settings)
        for name, tested in tests.items():
            probabilities[name].append(scores(classifier, tested.images))
    return probabilities


def _check(
    sets: Mapping[str, LabelledImages], generators: int, class_names: Sequence[str], seeds: Sequence[int]
) -> None:
    if len(sets) != generators + 2:
        raise ValueError("generated images are named 'real' or 'real test', like the real ones: use another name")
    if len(class_names) < 2:
        raise ValueError(f"class_names are {list(class_names)}: a label can steer only between two or more")
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds are {list(seeds)}: give at least one, each once")
    for name, (images, labels) in sets.items():
        if not len(images):
            raise ValueError(f"{name}: there are no images")
        try:
            class_counts(LabelledImages(images, labels), len(class_names))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    channels = {name: each.images.shape[1] for name, each in sets.items()}
    if len(set(channels.values())) > 1:
        raise ValueError(f"channels differ: {channels}. Convert all images to gray (1) or RGB (3)")


def _problem(name: str, images: LabelledImages, class_names: Sequence[str]) -> str:
    """Return which classes have too few images; empty if none."""
    counts = class_counts(images, len(class_names))
    few = [f"{class_name} {count}" for class_name, count in zip(class_names, counts, strict=True) if count < FEWEST]
    return f"{name}: too few images of {', '.join(few)}; each class needs {FEWEST}" if few else ""


def _both(first: LabelledImages, second: LabelledImages) -> LabelledImages:
    if first.images.shape[1:] != second.images.shape[1:]:
        raise ValueError(
            f"images are {tuple(first.images.shape[1:])} and {tuple(second.images.shape[1:])}: read all sets at one "
            "working size with labelled_images"
        )
    return LabelledImages(torch.cat([first.images, second.images]), torch.cat([first.labels, second.labels]))


def _resampled_within_classes(labels: Tensor, replicates: int, generator: np.random.Generator) -> Tensor:
    """Weights (replicates, N) of images resampled within their class, so no class loses all images."""
    weights = torch.zeros(replicates, len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        drawn = generator.multinomial(len(members), _equal(len(members)), size=replicates)
        weights[:, members] = torch.from_numpy(drawn).double()
    return weights


def _equal(count: int) -> np.ndarray:
    return np.full(count, 1 / count)
