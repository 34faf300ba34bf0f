"""The rule by which a recipe becomes the default of ``small.yaml``, written before any result on real images.

What decides
    The arms in ``RULE["deciding"]``, each against ``v_l2``, the recipe of ``small.yaml``, on images of patients, for
    equal processor seconds: an arm whose step takes longer gets fewer steps. Arms that a bundle rules out, as flips
    where it has none, are not run. Every arm that was run is in the tables, also one that decides nothing.

Seeds and lengths
    At least four seeds of each arm, the same for all. Each training is measured twice, after 60% and after 100% of
    its steps; it is one training, whose learning rate falls over all steps, so the first figures are of an unfinished
    one. A verdict needs both lengths of at least four seeds, of the arm and of the reference.

Figures
    Of averaged weights, by the sampler of ``small.yaml``, without guidance, from the same seeds for all arms: the
    Fréchet distance of the samples to the training images, divided by that of as many held-out images (the *ratio*);
    precision and recall against the training images; AUC of three small classifiers of real images, which of colour
    images see structure alone. Features are those of EfficientNet-Lite0.

An arm passes at a length if
    1. its ratio is lower than the reference's by more than the seeds' spread: of the differences between arm and
       reference of the same seed, the mean is below zero by more than the range (largest less smallest);
    2. its recall is not worse: the mean difference is at least -0.01;
    3. its AUC is not worse: the mean difference is at least -0.02;
    4. an arm that learns from the features that judge it (``aligned``) has no larger error of the clean latents of
       held-out images either: the mean difference of the logarithm of that error is at most 0.

    An arm does not pass if one of its trainings ended in a loss that is not finite.

The winner
    of a data set is the arm that passes at both lengths and has the lowest mean ratio at both, among the arms that
    pass at both. If another arm is lowest at each length, there is no winner. A default of ``small.yaml``, which is the
    same file in all bundles, changes if the same arm wins on chest X-rays and on histology; what belongs to a modality
    (``shifts``, ``no_flips``) if it wins on its own data set. Otherwise defaults stay as they are.

An arm without effect meets condition 1 at one length by chance about once in a hundred times
(``tests/benchmarks/test_rule.py``: normal differences, four seeds).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from study.arms import REFERENCE

Record = Mapping[str, Any]

RULE: dict[str, Any] = {
    "reference": REFERENCE,
    "deciding": [
        "v",
        "v_min_snr",
        "zero_snr",
        "flow",
        "contrastive",
        "dropout",
        "shifts",
        "no_flips",
        "aligned",
        "equivariant",
    ],
    "least_seeds": 4,
    "lengths": [0.6, 1.0],
    "recall_margin": 0.01,
    "auc_margin": 0.02,
    "taught_by_the_judge": ["aligned"],
}
"""The rule's numbers; a study that was begun with others is refused."""


class Difference(NamedTuple):
    """Differences of a figure between an arm and the reference, seed by seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the seeds."""
        return statistics.mean(self.values)

    @property
    def range(self) -> float:
        """Largest less smallest."""
        return max(self.values) - min(self.values)


class Verdict(NamedTuple):
    """What the rule says about an arm at a length.

    Attributes:
        ratio: mean over seeds.
        differences: of ``ratio``, ``recall``, ``auc`` and ``clean_error`` (its logarithm); empty after a failure.
        passes: whether it passes; None while seeds are missing.
        why: the conditions that it fails, or what is missing.
    """

    ratio: float
    differences: Mapping[str, Difference]
    passes: bool | None
    why: str


def known(record: Record, figure: str) -> float:
    """Return a figure of a record: 0 where there is none, as of the recall of images that are all the same."""
    return record[figure] or 0.0


def figures(records: Sequence[Record], arm: str, length: float) -> dict[int, dict[str, float]]:
    """Return the figures of an arm at a length by seed.

    Args:
        records: of a study: baselines, trainings, evaluations.
        arm: its name.
        length: share of the steps.
    """
    real = [record["fid"] for record in records if record["kind"] == "baseline" and record["name"] == "real"]
    found: dict[int, dict[str, float]] = {}
    for record in records:
        if record.get("arm") != arm or record.get("length") != length or not real:
            continue
        own = found.setdefault(record["seed"], {})
        if record["kind"] == "training":
            own["clean_error"] = math.log(record["clean_error"]["averaged"]["geometric_mean"])
            own["steps"] = record["steps"]
        elif record["kind"] == "evaluation":
            own |= {name: known(record, name) for name in ("precision", "recall", "auc")}
            own["ratio"] = record["fid"] / real[0]
    return {seed: own for seed, own in sorted(found.items()) if "ratio" in own and "steps" in own}


def judge_arm(records: Sequence[Record], arm: str, length: float, rule: Mapping[str, Any] = RULE) -> Verdict | None:
    """Apply the conditions to an arm at a length; None if it was not run with a seed of the reference."""
    if any(record["kind"] == "failure" and record["arm"] == arm for record in records):
        return Verdict(math.inf, {}, False, "a training failed")
    own, reference = (figures(records, name, length) for name in (arm, rule["reference"]))
    seeds = [seed for seed in own if seed in reference]
    if not seeds:
        return None
    names = ("ratio", "recall", "auc", "clean_error")
    differences = {name: Difference(tuple(own[s][name] - reference[s][name] for s in seeds)) for name in names}
    ratio = statistics.mean(own[seed]["ratio"] for seed in seeds)
    if len(seeds) < rule["least_seeds"]:
        return Verdict(ratio, differences, None, f"{len(seeds)} of {rule['least_seeds']} seeds")
    failed = {
        "ratio": -differences["ratio"].mean <= differences["ratio"].range,
        "recall": differences["recall"].mean < -rule["recall_margin"],
        "AUC": differences["auc"].mean < -rule["auc_margin"],
        "error of clean latents": arm in rule["taught_by_the_judge"] and differences["clean_error"].mean > 0.0,
    }
    why = ", ".join(name for name, is_so in failed.items() if is_so)
    return Verdict(ratio, differences, not why, why)


def winner(records: Sequence[Record], rule: Mapping[str, Any] = RULE) -> tuple[str | None, str]:
    """Return the arm that wins on a data set, or None, and a sentence on why."""
    lengths = rule["lengths"]
    if not all(figures(records, rule["reference"], length) for length in lengths):
        return None, f"no winner yet: {rule['reference']} has no figures at all lengths"
    verdicts = {arm: [judge_arm(records, arm, length, rule) for length in lengths] for arm in rule["deciding"]}
    run = {arm: each for arm, each in verdicts.items() if any(each)}
    missing = [arm for arm, each in run.items() if any(verdict is None or verdict.passes is None for verdict in each)]
    if missing:
        return None, f"no winner yet: seeds or lengths are missing of {', '.join(missing)}"
    passing = {arm: [v.ratio for v in each if v] for arm, each in run.items() if all(v and v.passes for v in each)}
    if not passing:
        return None, "no arm passes at all lengths: the default stays"
    best = [min(passing, key=lambda arm: passing[arm][place]) for place in range(len(lengths))]
    if len(set(best)) > 1:
        shown = ", ".join(f"{arm} at {length:.0%}" for arm, length in zip(best, lengths, strict=True))
        return None, f"the lengths disagree ({shown}): the default stays"
    return best[0], f"{best[0]} wins"
