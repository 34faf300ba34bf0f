"""Which figures of a report and an audit are about a set of samples: those of these very images and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from medfusion_monai.evaluation.bundle_images import OURS
from medfusion_monai.report.read_back import AUDIT_OF_OTHERS, measured_weights

REAL = {"real", "real test"}
"""Sets of a classifier besides generated ones."""
OTHER_IMAGES = (
    "The {file} that was given is of other images or labels than these, so its figures about images are not shown."
)
OTHER_TRAINING = (
    "The audit that was given compared with other training images than those of these weights, so its figures are not "
    "shown."
)


class Identity(NamedTuple):
    """What identifies a set of samples.

    Attributes:
        content_sha256: of its pixels.
        classes: number of images by name of the class.
        weights_sha256: of the weights that it was sampled from.
        trained_on: fingerprint of their training images; None if it is unknown.
    """

    content_sha256: str
    classes: Mapping[str, int]
    weights_sha256: str
    trained_on: str | None = None

    def is_of(self, described: Mapping[str, Any]) -> bool:
        """Return whether a set, as a report or an audit describes it, has these images and labels."""
        return described.get("content_sha256") == self.content_sha256 and described.get("classes") == self.classes


def own_figures(report: Mapping[str, Any], samples: Identity) -> dict[str, Any]:
    """Return the parts of a report that are about a set of samples and the weights behind them.

    Args:
        report: content of ``report.json``, of any sets of images.
        samples: the set.

    Returns:
        As the report; without ``sets`` if it is of other images, without ``reconstructions`` if of no or other weights.
    """
    own: dict[str, Any] = {}
    if measured_weights(report) == samples.weights_sha256:
        own["reconstructions_note"] = report.get("reconstructions_note")
        own["reconstructions"] = [row for row in report.get("reconstructions") or [] if row["name"] == OURS]
    sets = report.get("sets") or []
    mine = [item for item in sets if samples.is_of(item)][:1]
    if not mine:
        return own
    name, others = mine[0]["name"], [item["name"] for item in sets if item is not mine[0]]
    return {
        **own,
        "sets": mine,
        "warnings": _own_warnings(report.get("warnings") or [], others),
        "features": report.get("features"),
        "scale": report.get("scale"),
        "fidelity": [row for row in report.get("fidelity") or [] if row["name"] == name],
        "steering": _own_steering(report.get("steering") or {}, name),
    }


def audit_problem(audit: Mapping[str, Any], samples: Identity) -> str | None:
    """Return why the figures of an audit are not about a set of samples, as a sentence; None if they are.

    Args:
        audit: content of ``audit.json``.
        samples: the set.
    """
    audited = [item for item in audit["sets"] if item["name"] == "generated"]
    if not any(map(samples.is_of, audited)):
        return OTHER_IMAGES.format(file="audit")
    compared = ((audit.get("repeat") or {}).get("checksums") or {}).get("training images")
    return OTHER_TRAINING if samples.trained_on not in (None, compared) else None


def _own_warnings(warnings: Sequence[str], others: Sequence[str]) -> list[str]:
    about_others = tuple(f"{name}:" for name in others)
    return [text for text in warnings if not text.startswith(about_others) and text != AUDIT_OF_OTHERS]


def _own_steering(steering: Mapping[str, Any], name: str) -> dict[str, Any]:
    known = {*REAL, name, f"real and {name}"}
    answers = {key: found for key, found in (steering.get("answers") or {}).items() if key == name}
    rows = [row for row in steering.get("rows") or [] if {row["trained_on"], row["tested_on"]} <= known]
    return {**steering, "answers": answers, "rows": rows}
