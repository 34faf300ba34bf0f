"""Reading of existing reports and audits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

AUDIT_OF_OTHERS = "The audit is of other generated images than this report: run medfusion audit on the same samples."
"""The warning of a report that includes such an audit."""


def read_object(path: str | Path) -> dict[str, Any]:
    """Read a JSON file that contains an object.

    Raises:
        ValueError: for a missing file or other content.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}. Name another file") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} does not contain a JSON object. Name another file")
    return found


def read_measured(path: str | Path, weights_sha256: str) -> dict[str, Any]:
    """Read a report or an audit of weights.

    Args:
        path: ``report.json`` or ``audit.json``.
        weights_sha256: checksum of the weights that it must be of.

    Raises:
        ValueError: for a file that cannot be read or is of other weights.
    """
    measured = read_object(path)
    found = measured_weights(measured)
    if found not in (None, weights_sha256):
        raise ValueError(
            f"{path} is of other weights (SHA-256 {found[:12] if found else ''}...) than these "
            f"({weights_sha256[:12]}...): name the file for these weights, or leave it out"
        )
    return measured


def read_audit(path: str | Path, weights_sha256: str) -> dict[str, Any]:
    """Read an audit of weights.

    Args:
        path: ``audit.json``.
        weights_sha256: checksum of the weights that it must be of.

    Raises:
        ValueError: for a file that is not an audit or is of other weights.
    """
    found = read_measured(path, weights_sha256)
    if not isinstance(found.get("audit"), dict) or {"sets", "warnings"} - set(found):
        raise ValueError(f"{path} is not an audit: run medfusion audit and name the audit.json in its --output")
    return found


def measured_weights(measured: Mapping[str, Any]) -> str | None:
    """Return the checksum of the weights that a report or an audit records; None without one."""
    found: Any = measured
    for key in ("repeat", "checksums", "model.pt"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return None if found is None else str(found)
