"""Tables of a study of real images: every arm that was run, at every length, and the verdict."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from study.arms import ARMS
from study.rule import RULE, Difference, figures, judge_arm, known, winner
from study.summary import spread

Record = Mapping[str, Any]
HEAD = (
    "| arm | seeds | steps | ratio of Fréchet distances | difference from the reference, by seed | precision | recall "
    "| difference | AUC | difference | error of clean latents | passes |"
)


def real_tables(datasets: Mapping[str, Sequence[Record]], rule: Mapping[str, Any] = RULE) -> str:
    """Write a table per data set and length, and who wins.

    Args:
        datasets: all records of each study, by its name.
        rule: that decides.
    """
    parts = []
    for name, records in datasets.items():
        for length in rule["lengths"]:
            parts += [f"{name}, after {length:.0%} of the steps:", "", *length_table(records, length, rule), ""]
        failures = [f"Failed: {record['error']}." for record in records if record["kind"] == "failure"]
        parts += [*_baselines(records), "", *failures, f"{name}: {winner(records, rule)[1]}.", ""]
    return "\n".join([*parts, joint_verdict(datasets, rule)])


def joint_verdict(datasets: Mapping[str, Sequence[Record]], rule: Mapping[str, Any] = RULE) -> str:
    """Write whether the same arm wins on all data sets."""
    winners = {name: winner(records, rule)[0] for name, records in datasets.items()}
    if len(datasets) < 2:
        return "A default of all bundles needs the same winner on a second data set (--also)."
    if any(winner(records, rule)[1].startswith("no winner yet") for records in datasets.values()):
        return "No verdict over all data sets yet."
    first, *others = winners.values()
    if first is not None and all(other == first for other in others):
        return f"{first} wins on all data sets."
    return "No arm wins on all data sets: the default stays."


def length_table(records: Sequence[Record], length: float, rule: Mapping[str, Any] = RULE) -> list[str]:
    """Return the lines of the table of a length: means and half the range of the seeds, paired differences."""
    lines = [HEAD, "|" + "---|" * HEAD.count(" |")]
    for arm in ARMS:
        own = figures(records, arm.name, length)
        if not own:
            continue
        means = {name: spread(each[name] for each in own.values()) for name in ("ratio", "precision", "recall", "auc")}
        error = math.exp(statistics.mean(each["clean_error"] for each in own.values()))
        verdict = judge_arm(records, arm.name, length, rule)
        differences: Mapping[str, Difference] = {} if verdict is None else verdict.differences
        by_seed = ", ".join(f"{value:+.2f}" for value in differences["ratio"].values) if differences else ""
        means_of = {name: f"{differences[name].mean:+.3f}" if differences else "" for name in ("recall", "auc")}
        cells = [arm.words, str(len(own)), str(next(iter(own.values()))["steps"]), f"{means['ratio']:.2f}", by_seed]
        cells += [f"{means['precision']:.2f}", f"{means['recall']:.3f}", means_of["recall"], f"{means['auc']:.3f}"]
        lines.append(f"| {' | '.join([*cells, means_of['auc'], f'{error:.4f}', _passes(arm.name, verdict, rule)])} |")
    return lines


def _passes(arm: str, verdict: Any, rule: Mapping[str, Any]) -> str:
    if arm == rule["reference"]:
        return "reference"
    if arm not in rule["deciding"]:
        return "does not decide"
    if verdict is None or verdict.passes is None:
        return "open" + (f": {verdict.why}" if verdict else "")
    return "yes" if verdict.passes else f"no: {verdict.why}"


def _baselines(records: Sequence[Record]) -> list[str]:
    found = {record["name"]: record for record in records if record["kind"] == "baseline"}
    lines = ["| held-out images | number | Fréchet distance | ratio | precision | recall | AUC |", "|" + "---|" * 7]
    for name, record in found.items():
        ratio = record["fid"] / found["real"]["fid"]
        cells = [name, str(record["count"]), f"{record['fid']:.1f}", f"{ratio:.2f}"]
        cells += [f"{known(record, 'precision'):.2f}", *(f"{known(record, each):.3f}" for each in ("recall", "auc"))]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
