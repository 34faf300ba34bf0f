"""What of an audit leaves a site: its figures, without commands, names of files and folders, and single images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medfusion_monai.audit.run_audit import UNKNOWN_TRAINING
from medfusion_monai.export.card import readable
from medfusion_monai.export.public import known
from medfusion_monai.report.audit_sections import audit_warnings
from medfusion_monai.report.read_back import measured_weights

FIGURES = (
    "flips",
    "orientations",
    "wanted_rate",
    "measures",
    "leaked",
    "threshold",
    "rate",
    "held_out",
    "apart",
    "passed",
    "near_by_measure",
    "median_held_out",
    "median_generated",
    "rows",
    "repeats",
    "nearer_to_training",
    "membership",
    "guard",
    "power",
    "earlier_trainings_on_other_images",
)
"""Entries of an audit that are numbers, names of classes, or words of this program."""
SET = ("name", "count", "classes", "size", "channels", "content_sha256")
LEAK = ("split", "number", "equal")
FEATURES = ("sha256", "dimensions", "resize", "is_inception")
OWN_NETWORK = "TorchScript"
"""Beginning of the name of features that contains the name of a file."""


def public_audit(audit: Mapping[str, Any]) -> dict[str, Any]:
    """Return an audit with only its known figures.

    Args:
        audit: content of ``audit.json``.

    Raises:
        ValueError: if it has an unexpected form.
    """
    return readable("audit", _public, audit)


def public_features(features: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the description of features, without the name of a user's file."""
    if not features:
        return None
    name = str(features.get("name", ""))
    return {"name": OWN_NETWORK if name.startswith(OWN_NETWORK) else name, **known(features, FEATURES)}


def _public(audit: Mapping[str, Any]) -> dict[str, Any]:
    found, repeat = audit["audit"], audit["repeat"]
    figures = known(found, FIGURES)
    figures |= {"features": public_features(found.get("features")), "closest": []}
    figures["leaks"] = [known(leak, LEAK) for leak in found["leaks"]]
    results: dict[str, Any] = {
        "title": "Memorisation audit",
        "sets": [known(each, SET) for each in audit["sets"]],
        "audit": figures,
    }
    warnings = [*audit_warnings(results), *(text for text in audit["warnings"] if text == UNKNOWN_TRAINING)]
    checksums = {"model.pt": measured_weights(audit), **known(repeat["checksums"], ("training images",))}
    versions = {key: str(value) for key, value in known(repeat["versions"], ("medfusion_monai", "torch")).items()}
    return {**results, "warnings": warnings, "repeat": {"checksums": checksums, "versions": versions}}
