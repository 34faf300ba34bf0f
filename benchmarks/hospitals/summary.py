"""The tables of a study, and what its rule says of each pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from few_steps import ratio
from helps.draws import resample_patients
from helps.summary import over_splits, shown
from study.store import Store
from torch import Tensor

from hospitals.costs import MEGABYTE
from hospitals.measuring import TestImages
from hospitals.protocol import (
    AREA_MARGIN,
    ARMS,
    DISTANCE_MARGIN,
    FEDERATED,
    MODELS,
    PAIRS,
    RULE,
    SHARED,
    data_of,
)
from hospitals.sites import ALL, SITES
from medfusion_monai.evaluation.metrics.intervals import Figure
from medfusion_monai.evaluation.metrics.label_steering import areas_under_curve

BETTER, WORSE, EQUAL, NONE = "better", "worse", "equal", "no difference shown"
Record = Mapping[str, Any]


class Summary:
    """Figures and verdicts of what a study has finished.

    Args:
        store: of the results.
        test: the held-out images.
        replicates: resampled sets of test patients.
    """

    def __init__(self, store: Store, test: TestImages, replicates: int) -> None:
        self.store, self.test = store, test
        self.weights = torch.cat(
            [
                torch.ones(1, len(test.labels), dtype=torch.float64),
                resample_patients(test.labels, test.patients, replicates),
            ]
        )

    def text(self) -> str:
        """Return all tables as Markdown."""
        missing = [name for name in ARMS if self.store.read(f"arm {name}") is None]
        parts = [RULE, self.arms(), self.mixtures(), self.verdicts(), self.audits(), self.costs()]
        if missing:
            parts.append(f"Not finished: {', '.join(missing)}.")
        return "\n\n".join(part for part in parts if part)

    def arms(self) -> str:
        """Return the figures of each arm, and of real training images."""
        lines = [
            "| trained on | distance | precision | recall | label AUC | AUC of a classifier of the images |",
            "|" + "---|" * 6,
        ]
        for kind, names in (("arm", ARMS), ("real", (*SITES, ALL))):
            for name in names:
                record = self.store.read(f"{kind} {name}")
                if record is not None:
                    lines.append(self._row(name if kind == "arm" else f"real images of {name}", record))
        return "\n".join(lines)

    def _row(self, words: str, record: Record) -> str:
        distance = "{value:.1f} ({low:.1f} to {high:.1f})".format(**record["fid"])
        figures = [shown(record[name]) for name in ("precision", "recall")]
        cells = [words, distance, *figures, shown(record.get("label")), shown(self.taught(record).as_dict())]
        return f"| {' | '.join(cells)} |"

    def mixtures(self) -> str:
        """Return what a site's real images teach alone, and together with samples of others."""
        lines = ["| classifier of | AUC | difference to its real images alone |", "|" + "---|" * 3]
        for site in SITES:
            own = self.store.read(f"real {site}")
            for name in (FEDERATED, SHARED):
                record = self.store.read(f"mixed {name} {site}")
                if record is not None and own is not None:
                    figures = (self.taught(record), self.difference(record, own))
                    cells = [shown(figures[0].as_dict()), shown(figures[1].as_dict(), "+")]
                    lines.append(f"| real images of {site} and samples, {name} | {' | '.join(cells)} |")
        return "\n".join(lines) if len(lines) > 2 else ""

    def verdicts(self) -> str:
        """Apply the rule to each pair."""
        lines = ["| pair | ratio of distances | by the rule | difference in AUC | by the rule |", "|" + "---|" * 5]
        for first, second in PAIRS:
            one, other = (self.store.read(f"arm {name}") for name in (first, second))
            if one is not None and other is not None:
                times, difference = ratio(plain(one), plain(other), "fid"), self.difference(one, other)
                cells = ["{:.3f} ({:.3f} to {:.3f})".format(*times), verdict_of_ratio(*times)]
                cells += [shown(difference.as_dict(), "+"), verdict_of_difference(difference)]
                lines.append(f"| {first} and {second} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def audits(self) -> str:
        """Return what the audits found."""
        lines = [
            "| samples of | against images of | flagged as copies | false alarms expected | nearer to training images "
            "| membership AUC |",
            "|" + "---|" * 6,
        ]
        for name in MODELS:
            for data in SITES if name == FEDERATED else (data_of(name),):
                audit = self.store.read(f"audit {name} {data}")
                if audit is not None:
                    lines.append(f"| {name} | {data} | {' | '.join(audit_cells(audit))} |")
        sharing = self.store.read("sharing") or {"refused": {}}
        refused = [f"{site} may not share: {reason}" for site, reason in sharing["refused"].items()]
        return "\n".join([*lines, "", *refused] if refused else lines)

    def costs(self) -> str:
        """Return what travels, and what the trainings took."""
        rows = self.store.read("travelling") or {}
        lines = ["| MB of each site, all rounds | " + " | ".join(SITES) + " |", "|" + "---|" * 4]
        lines += [
            f"| {name} | {' | '.join(f'{sizes[site] / MEGABYTE:.1f}' for site in SITES)} |"
            for name, sizes in rows.items()
        ]
        for name in MODELS:
            cost = self.store.read(f"training {name}")
            if cost is not None:
                lines.append(f"\n{name}: {cost['cpu_seconds'] / 60:.1f} processor minutes")
        return "\n".join(lines)

    def taught(self, record: Record) -> Figure:
        """Return the AUC of the classifiers of a record on the test images, within views."""
        return over_splits(self._areas(record))

    def difference(self, one: Record, other: Record) -> Figure:
        """Return the paired difference of two records' AUC."""
        return over_splits(self._areas(one) - self._areas(other))

    def _areas(self, record: Record) -> Tensor:
        values = torch.tensor(record["scores"], dtype=torch.float64)
        return torch.stack([areas_within_views(each, self.test, self.weights) for each in values])


def areas_within_views(values: Tensor, test: TestImages, weights: Tensor) -> Tensor:
    """Return the AUC (R,) of scores (N,) in resampled sets (R, N): the mean of those of the views with both classes."""
    areas = []
    for view in sorted(set(test.views)):
        member = torch.tensor([each == view for each in test.views])
        if len(test.labels[member].unique()) == 2:
            pairs = torch.stack([-values, values], dim=1)[member]
            areas.append(areas_under_curve(pairs, test.labels[member], weights[:, member]))
    return torch.stack(areas).mean(dim=0)


def plain(record: Record) -> dict[str, Any]:
    """Return the distances of a record as ``few_steps.ratio`` reads them."""
    return {"fid": record["fid"]["value"], "without": [{"fid": value} for value in record["without"]]}


def verdict_of_ratio(value: float, low: float, high: float) -> str:
    """Apply the rule to a ratio of distances."""
    if low > 1 / (1 + DISTANCE_MARGIN) and high < 1 + DISTANCE_MARGIN:
        return EQUAL
    return BETTER if high < 1 else WORSE if low > 1 else NONE


def verdict_of_difference(figure: Figure) -> str:
    """Apply the rule to a difference in AUC."""
    if figure.low is None or figure.high is None:
        return NONE
    if figure.low > -AREA_MARGIN and figure.high < AREA_MARGIN:
        return EQUAL
    return BETTER if figure.low > 0 else WORSE if figure.high < 0 else NONE


def audit_cells(audit: Record) -> list[str]:
    """Return copies, expected false alarms, the nearer share and the AUC of membership inference of an audit."""
    row = audit["rows"][0]
    if row["copy_rate"]["value"] is None:
        return [f"withheld: {row['copy_rate']['note']}", "", "", ""]
    flagged = f"{row['copies']} of {row['count']}"
    figures = [audit["nearer_to_training"], audit["membership"]["auc"]]
    return [flagged, f"{row['expected_false_alarms']:.1f}", *(known(figure) for figure in figures)]


def known(figure: Record) -> str:
    """Write a figure that may be withheld."""
    return f"withheld: {figure['note']}" if figure["value"] is None else shown(figure)
