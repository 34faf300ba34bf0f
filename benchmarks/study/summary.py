"""Tables of a study, and the rule by which an arm wins."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from study.arms import ARMS, BASELINE
from study.evaluation import CHECK, FAST

RULE = (
    "An arm wins if in every data set its Fréchet distance by the fast sampler is lower than the baseline's, on the "
    "mean over seeds, by more than the spread over seeds (half the range, of the arm or of the baseline, whichever is "
    "larger), it is lower by the other sampler too, and its labels are not shown worse by more than their spread, of "
    "at least one percentage point (phantoms: agreement of the measured property; patients: AUC of classifiers of real "
    "images)."
)
LEAST_SPREAD = 0.01
PLAIN = {"weights": "averaged", "sampler": FAST, "guidance_scale": 1.0}
FIGURES = ("fid", "kid", "precision", "recall", "agreement", "auc")
Record = Mapping[str, Any]


class Spread(NamedTuple):
    """Mean over seeds and half the range between them."""

    mean: float
    half_range: float

    def __format__(self, digits: str) -> str:
        """Write both with the digits of a format, as ``.2f``."""
        return f"{self.mean:{digits}} ± {self.half_range:{digits}}"


def spread(values: Iterable[float]) -> Spread:
    """Return mean and half the range of values."""
    listed = list(values)
    return Spread(statistics.mean(listed), (max(listed) - min(listed)) / 2)


def by_seed(records: Iterable[Record], figure: str, **chosen: Any) -> dict[int, float]:
    """Return a figure by seed, of the records that have the chosen values."""
    return {
        record["seed"]: record[figure]
        for record in records
        if record.get(figure) is not None and all(record.get(name) == value for name, value in chosen.items())
    }


def paired(values: Mapping[int, float], others: Mapping[int, float]) -> list[float]:
    """Differences of two figures, seed by seed."""
    return [values[seed] - others[seed] for seed in sorted(values) if seed in others]


def best_arm(records: Sequence[Record]) -> str | None:
    """Return the arm beside the baseline with the lowest Fréchet distance, on the mean over seeds; None without one."""
    means = {}
    for name in {record["arm"] for record in records} - {BASELINE}:
        values = by_seed(records, "fid", arm=name, **PLAIN)
        if values:
            means[name] = statistics.mean(values.values())
    return min(means, key=lambda name: means[name]) if means else None


def summarise(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return a row for each arm, weights, sampler and guidance: figures over seeds, and differences from the baseline.

    Args:
        records: evaluations with ``arm``, ``seed``, ``weights``, ``sampler``, ``guidance_scale`` and figures.

    Returns:
        Rows; each figure is a dictionary with ``mean``, ``half_range``, ``by_seed``, and ``difference`` (a list, seed
        by seed) from the baseline's averaged weights with the same sampler and no guidance.
    """
    order = {arm.name: place for place, arm in enumerate(ARMS)}
    keys = {(r["arm"], r["weights"], r["sampler"], r["guidance_scale"]) for r in records}
    rows = []
    for name, weights, sampler, guidance in sorted(keys, key=lambda k: (k[3] != 1.0, order[k[0]], k[1], k[2], k[3])):
        chosen = {"arm": name, "weights": weights, "sampler": sampler, "guidance_scale": guidance}
        base = {"arm": BASELINE, "weights": "averaged", "sampler": sampler, "guidance_scale": 1.0}
        row: dict[str, Any] = dict(chosen)
        for figure in FIGURES:
            values = by_seed(records, figure, **chosen)
            if values:
                difference = paired(values, by_seed(records, figure, **base))
                row[figure] = {**spread(values.values())._asdict(), "by_seed": values, "difference": difference}
        rows.append(row)
    return rows


def judge(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Apply the rule to each arm of one data set.

    Returns:
        By arm: ``fid`` and ``label`` as ``Spread`` of the paired differences from the baseline, and ``wins``.
    """
    label = "agreement" if any(record.get("agreement") is not None for record in records) else "auc"
    base = {figure: by_seed(records, figure, arm=BASELINE, **PLAIN) for figure in ("fid", label)}
    checked = {**PLAIN, "sampler": CHECK}
    verdicts = {}
    for arm in ARMS:
        own = {figure: by_seed(records, figure, arm=arm.name, **PLAIN) for figure in base}
        pairs = {figure: paired(own[figure], base[figure]) for figure in base}
        if arm.name == BASELINE or not pairs["fid"]:
            continue
        noise = {figure: max(spread(each[figure].values()).half_range for each in (own, base)) for figure in base}
        check = paired(*(by_seed(records, "fid", arm=name, **checked) for name in (arm.name, BASELINE)))
        better = statistics.mean(pairs["fid"]) < -noise["fid"] and all(difference < 0 for difference in check)
        not_worse = statistics.mean(pairs[label]) >= -max(noise[label], LEAST_SPREAD)
        verdicts[arm.name] = {
            "fid": spread(pairs["fid"]),
            "label": spread(pairs[label]),
            "label_figure": label,
            "seeds": len(pairs["fid"]),
            "wins": better and not_worse,
        }
    return verdicts


def markdown(
    rows: Sequence[Mapping[str, Any]], trainings: Sequence[Record], baselines: Mapping[str, Record] | None = None
) -> str:
    """Write the tables of one data set: arms, raw weights, guidance, and what real images get."""
    names = {arm.name: arm.words for arm in ARMS}
    head = "| arm | sampler | Fréchet distance | difference, by seed | KID | precision | recall | agreement | AUC |"
    lines = [head, "|" + "---|" * 9]
    for row in rows:
        words = names[row["arm"]] + ("" if row["weights"] == "averaged" else f", {row['weights']} weights")
        words += "" if row["guidance_scale"] == 1.0 else f", guidance {row['guidance_scale']:g}"
        difference = ", ".join(f"{value:+.1f}" for value in row["fid"]["difference"])
        cells = [_cell(row, "fid", ".1f"), difference, _cell(row, "kid", ".0f"), _cell(row, "precision", ".2f")]
        cells += [_cell(row, "recall", ".2f"), _cell(row, "agreement", ".3f"), _cell(row, "auc", ".3f")]
        lines.append(f"| {words} | {row['sampler']} | {' | '.join(cells)} |")
    for name, record in (baselines or {}).items():
        cells = [f"{record['fid']:.1f}", "", f"{record['kid']:.0f}"]
        cells += [f"{record[figure]:.2f}" for figure in ("precision", "recall")]
        cells += ["" if record[figure] is None else f"{record[figure]:.3f}" for figure in ("agreement", "auc")]
        lines.append(f"| {record['count']} held-out images, {name} | | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_training_table(trainings)])


def verdict_table(datasets: Mapping[str, Sequence[Record]]) -> str:
    """Write who wins by the rule, over all data sets together."""
    verdicts = {name: judge(records) for name, records in datasets.items()}
    columns = [f"{name}: Fréchet distance | {name}: label" for name in datasets]
    lines = [RULE, "", f"| arm | {' | '.join(columns)} | wins |", "|" + "---|" * (2 + 2 * len(datasets))]
    for arm in ARMS:
        own = [verdicts[name].get(arm.name) for name in datasets]
        if not any(own):
            continue
        cells = [f"{each['fid']:+.1f} | {each['label']:+.3f}" if each else " | " for each in own]
        wins = "yes" if all(each and each["wins"] for each in own) else "no"
        lines.append(f"| {arm.words} | {' | '.join(cells)} | {wins} |")
    return "\n".join(lines)


def _training_table(trainings: Sequence[Record]) -> list[str]:
    lines = ["| arm | steps | processor seconds | error of clean latents, averaged weights |", "|---|---|---|---|"]
    for arm in ARMS:
        own = [record for record in trainings if record["arm"] == arm.name]
        if own:
            error = spread(record["clean_error"]["averaged"]["geometric_mean"] for record in own)
            seconds = spread(record["cpu_seconds"] for record in own)
            lines.append(f"| {arm.words} | {own[0]['steps']} | {seconds:.0f} | {error:.4f} |")
    return lines


def _cell(row: Mapping[str, Any], figure: str, digits: str) -> str:
    if figure not in row:
        return ""
    return format(Spread(row[figure]["mean"], row[figure]["half_range"]), digits)
