"""The answer of an audit: may these images be shared, and what speaks against it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medfusion_monai.report.tables import plain

LEAST_RECALL = 0.9
"""Recall of degraded copies below which the guard is reported to miss them."""
UNSEEN = (
    "It cannot see copied parts of an image, copies altered more than those of its test of the guard, or what other "
    "samples or an attack on the weights would show."
)


def verdict(audit: Mapping[str, Any]) -> str:
    """Return the answer, at most three sentences: what was found, what else speaks against sharing, what is unseen.

    Images should not be shared if the interval of their copy rate is above the rate of false alarms; with fewer
    flagged images, not before these have been looked at. What else speaks against sharing is listed by ``objections``.
    """
    row, against = audit["rows"][0], objections(audit)
    rate = row["copy_rate"]
    if rate["value"] is None:
        found = f"Whether these images may be shared cannot be answered ({rate['note']})."
    else:
        flagged = f"{row['copies']:,} of {row['count']:,} are copies of a training image by the rule below"
        alarms = f"up to {row['expected_false_alarms']:.1f} would be flagged if none were"
        if rate["low"] > audit["rate"]:
            found = f"These images should not be shared: {flagged}, and {alarms}."
        elif row["copies"]:
            found = (
                f"These images should not be shared before the flagged ones were looked at: {flagged}, and {alarms}."
            )
        elif against:
            found = f"No copy was found among these {row['count']:,} images, but they should not be shared unexamined."
        else:
            found = (
                f"This audit found nothing that speaks against sharing: no copy among these {row['count']:,} images."
            )
    return " ".join([found, *([f"Against sharing also speaks: {'; '.join(against)}."] if against else []), UNSEEN])


def objections(audit: Mapping[str, Any]) -> list[str]:
    """Return what speaks against sharing beside copies.

    Shares and AUC are named if their interval is above what chance gives, a recall if it is below 90%.
    """
    found = []
    near = (audit.get("passed") or {}).get("nearer_than_99")
    if near and near["low"] > 0.01:
        found.append(
            f"{percent(near['value'])} of the images that are no copies are nearer to a training image than 99% of "
            "the held-out images are"
        )
    nearer = audit["nearer_to_training"]
    if nearer["value"] is not None and nearer["low"] is not None and nearer["low"] > 0.5:
        found.append(
            f"{percent(nearer['value'])} are nearer to the training images than to as many held-out ones, against 50% "
            "without memorisation"
        )
    auc = audit["membership"].get("auc")
    if auc and auc["value"] is not None and auc["low"] > 0.5:
        found.append(f"the loss of the weights separates training from held-out images (AUC {auc['value']:.2f})")
    recall = (audit.get("power") or {}).get("recall") or {}
    missed = [plain(name) for name, figure in recall.items() if figure["value"] < LEAST_RECALL]
    if missed:
        found.append(f"the guard misses more than a tenth of some degraded copies ({', '.join(missed)})")
    if audit.get("earlier_trainings_on_other_images"):
        found.append("a part of the weights was trained on other or unknown images, with which nothing was compared")
    if audit["repeats"]:
        found.append(f"{audit['repeats']:,} training images are repeated")
    return found


def percent(share: float) -> str:
    """Return a share in percent, with one decimal."""
    return f"{100 * share:.1f}%"
