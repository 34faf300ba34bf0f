"""Figures over splits, the verdict by the rule, and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor

from helps.classifier import areas
from helps.draws import Pool, resample_patients
from helps.protocol import MARGIN, REAL, RULE, WHOLE, WHOLE_ARMS, Arm, Protocol
from medfusion_monai.evaluation.metrics.intervals import LEVEL, Figure

HELPS, HARMS, NONE = "helps", "harms", "no difference shown"
Record = Mapping[str, Any]


def summarise(records: Sequence[Record], pool: Pool, protocol: Protocol) -> list[dict[str, Any]]:
    """Return a row for each arm and share of the patients of which every split is done.

    Returns:
        Rows with ``arm``, ``words``, ``network``, ``fraction``; ``auc`` and ``difference`` (to real images only) as
        dictionaries of ``Figure``, None without one; ``by_seed``, the AUC of each split; ``images`` and ``verdict``.
    """
    labels, patients = pool.labels[pool.test], pool.patients[pool.test]
    weights = resample_patients(labels, patients, protocol.replicates)
    resampled: dict[tuple[str, float, int], Tensor] = {}
    known = {(record["arm"], record["fraction"], record["seed"]): record for record in records}
    for key, record in known.items():
        if "scores" in record:
            values = torch.tensor(record["scores"], dtype=torch.float64)
            whole = torch.ones(1, len(labels), dtype=torch.float64)
            resampled[key] = areas(values, labels, torch.cat([whole, weights]))
    rows = []
    for fraction in protocol.fractions:
        for arm in dict.fromkeys((*protocol.arms, *WHOLE_ARMS)):
            own = [known.get((arm.name, fraction, seed)) for seed in protocol.seeds]
            done = [record for record in own if record is not None]
            if len(done) == len(own):
                keys = [(arm.name, fraction, seed) for seed in protocol.seeds]
                base = [(Arm(REAL, network=arm.network).name, fraction, seed) for seed in protocol.seeds]
                rows.append({**_named(arm, fraction), **_row(done, keys, base, resampled)})
    return rows


def over_splits(values: Tensor) -> Figure:
    """Return the mean over splits with its interval over test patients and trainings.

    The test patients are the same in all splits, so their variance is that of the resampled mean. That of the trainings
    is the variance between splits over their number. Both add; the interval is Student's, with the degrees of freedom
    of Satterthwaite (1946), of which the variance between few splits has few. One split has no interval.

    Args:
        values: (S, 1 + R), of each split on all test patients, then on resampled ones.
    """
    mean, count = float(values[:, 0].mean()), len(values)
    if count < 2:
        return Figure(mean, note="one split has no interval")
    patients = float(values[:, 1:].mean(dim=0).var())
    trainings = float(values[:, 0].var()) / count
    total = patients + trainings
    freedom = float("inf") if trainings <= 0 else (count - 1) * (total / trainings) ** 2
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * total**0.5
    return Figure(mean, mean - half, mean + half)


def verdict(difference: Figure) -> str:
    """Apply the rule to a paired difference."""
    value, low, high, _ = difference
    if value is None or low is None or high is None:
        return NONE
    if low > 0 and value >= MARGIN:
        return HELPS
    return HARMS if high < 0 and value <= -MARGIN else NONE


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the rule and the table."""
    head = "| real patients | trained | images of both classes | AUC | difference to real only | verdict |"
    refusals: dict[str, list[str]] = {}
    lines = [RULE, "", head, "|" + "---|" * 6]
    for row in rows:
        words = ("whole network, " if row["network"] == WHOLE else "") + row["words"]
        figures = f"{shown(row['auc'])} | {shown(row['difference'], '+')}"
        lines.append(f"| {row['fraction']:.0%} | {words} | {row['images']} | {figures} | {row['verdict']} |")
        if "text" in row:
            refusals.setdefault(row["text"], []).append(f"{words} at {row['fraction']:.0%}")
    compared = sum(row["difference"] is not None for row in rows)
    by_chance = compared * (1 - LEVEL) / 2
    lines += [
        "",
        f"{compared} comparisons, each with its own 95% interval, uncorrected for their number: if no arm differed, "
        f"about {by_chance:.1f} would lie above 0 by chance.",
        *(f"Refused, {'; '.join(names)}: {text}" for text, names in refusals.items()),
    ]
    return "\n".join(lines)


def shown(figure: Mapping[str, Any] | None, sign: str = "") -> str:
    """Write a figure with its interval."""
    if figure is None:
        return ""
    value, low, high = (figure[name] for name in ("value", "low", "high"))
    return f"{value:{sign}.3f}" + ("" if low is None else f" ({low:{sign}.3f} to {high:{sign}.3f})")


def _named(arm: Arm, fraction: float) -> dict[str, Any]:
    return {"arm": arm.name, "words": arm.words, "network": arm.network, "fraction": fraction}


def _row(
    done: Sequence[Record],
    keys: Sequence[tuple[str, float, int]],
    base: Sequence[tuple[str, float, int]],
    resampled: Mapping[tuple[str, float, int], Tensor],
) -> dict[str, Any]:
    refused = Counter(record["refused"] for record in done if "refused" in record)
    if refused:
        words = ", ".join(f"{reason} in {count} of {len(done)} splits" for reason, count in refused.items())
        text = next(record["text"] for record in done if "refused" in record)
        return {"auc": None, "difference": None, "by_seed": {}, "images": "", "verdict": words, "text": text}
    own = torch.stack([resampled[key] for key in keys])
    row: dict[str, Any] = {
        "auc": _within_one(over_splits(own)).as_dict(),
        "difference": None,
        "by_seed": {seed: float(values[0]) for (_, _, seed), values in zip(keys, own, strict=True)},
        "images": _images(done),
        "verdict": "",
    }
    if list(keys) != list(base) and all(key in resampled for key in base):
        difference = over_splits(own - torch.stack([resampled[key] for key in base]))
        row |= {"difference": difference.as_dict(), "verdict": verdict(difference)}
    return row


def _images(done: Sequence[Record]) -> str:
    """Write the mean number of images of both classes, of each stage."""
    stages = torch.tensor([[stage["images"] for stage in record["stages"]] for record in done]).double().mean(dim=0)
    return ", then ".join(f"{negative:.0f} + {positive:.0f}" for negative, positive in stages.tolist())


def _within_one(figure: Figure) -> Figure:
    if figure.low is None or figure.high is None:
        return figure
    return figure._replace(low=max(0.0, figure.low), high=min(1.0, figure.high))
