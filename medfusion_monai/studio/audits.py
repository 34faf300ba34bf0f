"""What an audit of the weights says.

find_audit(weights) -> Path | None, the folder of an audit beside weights
ModelAudit(model, folder): .verdict -> str; .guard -> CopyGuard | None
audit_verdict(studio) -> str | None
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medfusion_monai.audit.guard import GUARD_NAME, CopyGuard, load_guard
from medfusion_monai.model import Model
from medfusion_monai.report.audit_verdict import verdict
from medfusion_monai.report.read_back import read_audit

if TYPE_CHECKING:
    from medfusion_monai.studio.service import Studio

AUDIT_NAME = "audit.json"


def find_audit(weights: Path) -> Path | None:
    """Return the folder of an audit: that of the weights, or one named ``audit`` beside them or in their bundle."""
    folder = weights.parent
    bundle = folder.parent if folder.name == "models" else folder
    places = (folder, folder / "audit", bundle / "audit")
    return next((place for place in places if (place / AUDIT_NAME).is_file()), None)


class ModelAudit:
    """An audit of a model's weights.

    Args:
        model: that was audited.
        folder: of ``audit.json`` and, unless it was left out, ``copy_guard.npz``.

    Attributes:
        verdict: whether the audited samples may be shared, and what speaks against it.
        guard: detects copies of training images; None without its file.

    Raises:
        ValueError: for an audit of other weights, or a damaged file.
    """

    def __init__(self, model: Model, folder: str | Path) -> None:
        folder = Path(folder)
        self.verdict = verdict(read_audit(folder / AUDIT_NAME, model.weights_sha256)["audit"])
        has_guard = (folder / GUARD_NAME).is_file()
        self.guard: CopyGuard | None = load_guard(folder, model.trained_on, model.image_size) if has_guard else None


def audit_verdict(studio: Studio) -> str | None:
    """Return the answer of the audit of a studio's model, at most three sentences; None without an audit."""
    return None if studio.audit is None else studio.audit.verdict
