"""The figures of an audit: copies, and images nearer to the training images than to held-out ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from medfusion_monai.audit.fingerprints import FLIPS, Prints, coarse, each_once
from medfusion_monai.audit.guard import CopyGuard
from medfusion_monai.audit.matching import JUDGES, SCALE_NEIGHBOURS, Matcher, Matches
from medfusion_monai.audit.sets import AuditedSet
from medfusion_monai.audit.statistics import (
    FALSE_ALARMS,
    LEAST,
    Calibration,
    calibrate,
    leaks,
    nearer_to_training,
    share_figure,
)
from medfusion_monai.evaluation.metrics.intervals import Figure, mean_figure
from medfusion_monai.runtime.seeds import derive_seed


class Copies(NamedTuple):
    """Which images are copies.

    Attributes:
        generated: the closest training image of each generated image.
        held_out: likewise of each held-out image that is not also a training image.
        kept: indices of those among all held-out images.
        leaked: (N,), which held-out images are also training images.
        calibration: the threshold; None if too few held-out images are left.
        measures: names of the distances.
    """

    generated: Matches
    held_out: Matches
    kept: Tensor
    leaked: Tensor
    calibration: Calibration | None
    measures: tuple[str, ...]

    def found(self) -> Tensor:
        """Return which generated images (M,) are copies; none without a threshold."""
        if self.calibration is None:
            return torch.zeros(len(self.generated.scores), dtype=torch.bool)
        return self.generated.scores < self.calibration.threshold


def find_copies(
    training: Prints, held_out: Prints, generated: Prints, equal: Tensor, flips: str = "horizontal"
) -> Copies | None:
    """Match generated and held-out images with training images, and find the threshold.

    Args:
        training: of the training images.
        held_out: of images that were not trained on.
        generated: of the generated images.
        equal: (N,), which held-out images equal a training image pixel by pixel.
        flips: key of ``FLIPS``.

    Returns:
        None if there are too few held-out images for a scale.
    """
    leaked, once = equal.clone(), each_once(training)  # repetitions would use up the candidates
    for _ in range(2):  # a leaked image among the neighbours of others shrinks their scale
        kept = (~leaked).nonzero()[:, 0]
        if len(kept) <= SCALE_NEIGHBOURS:
            return None
        matcher = Matcher(training.select(once), held_out.select(kept), flips)
        real = matcher.match(held_out.select(kept))
        more = leaks(real.scores)
        if not bool(more.any()):
            break
        leaked[kept[more]] = True
        kept, real = kept[~more], _some(real, ~more)
    calibration = calibrate(real.scores) if len(kept) >= LEAST else None
    found, real = (m._replace(places=once[m.places]) for m in (matcher.match(generated), real))
    return Copies(found, real, kept, leaked, calibration, matcher.measures)


def _some(matches: Matches, chosen: Tensor) -> Matches:
    return Matches(*(column[chosen] for column in matches))


def make_guard(
    training: Prints,
    held_out: Prints,
    copies: Copies | None,
    size: Sequence[int],
    flips: str,
    trained_on: str | None = None,
) -> CopyGuard | None:
    """Make the filter for sampling, which compares pixels and structure only.

    Args:
        training: of the training images.
        held_out: of all held-out images.
        copies: of ``find_copies``, with the same flips.
        size: height and width of the images.
        flips: key of ``FLIPS``.
        trained_on: ``fingerprint`` of the training images.

    Returns:
        The guard; None if there are too few held-out images.
    """
    if copies is None or copies.calibration is None:
        return None
    known = training.select(each_once(training))._replace(features=None)
    seen = held_out.select(copies.kept)._replace(features=None)
    scores = copies.held_out.scores
    if len(copies.measures) > len(JUDGES):
        scores = Matcher(known, seen, flips).match(seen).scores
    return CopyGuard(known.fine, seen.fine, calibrate(scores), size, flips, trained_on)


def copy_rows(
    copies: Copies | None, training: int, generated: AuditedSet, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return rows of the table of copies: all images, then those of each class of the real ones.

    Args:
        copies: of ``find_copies``.
        training: number of training images.
        generated: the generated images.
        class_names: in label order.
    """
    names = [name for name in class_names if len(class_names) > 1 and generated.images.class_names]
    rows = []
    for name in [None, *names]:
        chosen = generated.images.indices(name) if name is not None else list(range(len(generated.images.items)))
        row: dict[str, Any] = {"class_name": name, "count": len(chosen)}
        problem = _problem_of_rate(copies, training, len(chosen), name)
        if problem or copies is None or copies.calibration is None:
            row["copy_rate"] = Figure(None, note=problem).as_dict()
        else:
            found = copies.found()[chosen]
            number = int(found.sum())
            row["copies"] = number
            row["training_images"] = len(copies.generated.places[chosen][found].unique())
            row["expected_false_alarms"] = copies.calibration.rate * len(chosen)
            row["copy_rate"] = share_figure(number, len(chosen)).as_dict()
        rows.append(row)
    return rows


def _problem_of_rate(copies: Copies | None, training: int, count: int, name: str | None) -> str:
    """Return why a rate of copies is withheld; empty if it is not."""
    if copies is None or copies.calibration is None:
        return f"withheld: fewer than {LEAST} held-out images, too few to calibrate a threshold"
    if training < LEAST:
        return f"withheld: {training} training images; at least {LEAST} are needed"
    if count == 0:
        return f"no generated images of class {name}: nothing can be concluded about it"
    if count < LEAST:
        return f"withheld: {count} generated images; at least {LEAST} are needed"
    return ""


def nearer_figure(
    training: AuditedSet, held_out: AuditedSet, generated: AuditedSet, kept: Tensor, seed: int = 0
) -> Figure:
    """Return the share of generated images that are nearer to the training images than to as many held-out ones.

    Args:
        training: the training images.
        held_out: images that were not trained on.
        generated: the generated images.
        kept: indices of the held-out images that are not also training images.
        seed: of the interval, and of the choice of held-out images if they outnumber the training images.

    Returns:
        The share; its value is None if a set has too few images.
    """
    queries, real = vectors(generated.prints), vectors(held_out.prints.select(kept))
    counts = {"training": len(training.prints.fine), "held-out": len(real), "generated": len(queries)}
    few = [f"{count} {name}" for name, count in counts.items() if count < LEAST]
    if few:
        return Figure(None, note=f"withheld: {' and '.join(few)} images; at least {LEAST} are needed")
    known = vectors(training.prints)[each_once(training.prints)]
    order = np.random.default_rng(derive_seed("nearer", seed)).permutation(len(real))[: len(known)]
    return mean_figure(nearer_to_training(queries, known, real[np.sort(order)]), seed=seed)


def vectors(prints: Prints) -> Tensor:
    """Return the vectors (N, D) by which whole sets are compared: features, or coarse pixels without them."""
    return coarse(prints.fine) if prints.features is None else prints.features[:, 0].float()


def repeats_in(images: AuditedSet) -> int:
    """Count images that equal an earlier one, pixel by pixel."""
    return len(images.facts) - len({fact.digest for fact in images.facts})


def near_by_measure(copies: Copies) -> dict[str, int]:
    """Count the generated images that are below the threshold of a single measure.

    Each measure has its own threshold, at the same rate of false alarms as the score.
    """
    held_out, generated = (found.nearest / found.scales for found in (copies.held_out, copies.generated))
    return {
        name: int((generated[:, index] < calibrate(held_out[:, index]).threshold).sum())
        for index, name in enumerate(copies.measures)
    }


def passed_images(copies: Copies, calibration: Calibration) -> dict[str, Any]:
    """Count the generated images that are no copies but nearer to a training image, by pixels, than held-out ones.

    Held-out images below the threshold are left out: they would hide how near the generated ones are.

    Args:
        copies: of ``find_copies``.
        calibration: of the copies.

    Returns:
        ``count``, and the shares of it that are ``nearer_than_99`` percent and ``nearer_than_all`` of the held-out.
    """
    generated, held_out = (
        found.nearest[found.scores >= calibration.threshold, 0] for found in (copies.generated, copies.held_out)
    )
    if not len(generated) or not len(held_out):
        return {"count": len(generated)}
    order = held_out.sort().values
    limits = {"nearer_than_99": order[len(order) // 100], "nearer_than_all": order[0]}
    shares = {
        name: share_figure(int((generated < limit).sum()), len(generated)).as_dict() for name, limit in limits.items()
    }
    return {"count": len(generated), **shares}


def describe_copies(copies: Copies | None, flips: str) -> dict[str, Any]:
    """Return what a report states about the rule by which copies are found."""
    facts: dict[str, Any] = {"flips": flips, "orientations": len(FLIPS[flips]), "wanted_rate": FALSE_ALARMS}
    if copies is None:
        return facts
    facts |= {"measures": list(copies.measures), "leaked": int(copies.leaked.sum())}
    if copies.calibration is not None:
        facts |= copies.calibration._asdict()
        facts["passed"] = passed_images(copies, copies.calibration)
        if len(copies.generated.scores) >= LEAST:
            facts["near_by_measure"] = near_by_measure(copies)
        facts["median_held_out"] = float(copies.held_out.scores.median())
        facts["median_generated"] = float(copies.generated.scores.median()) if len(copies.generated.scores) else None
    return facts
