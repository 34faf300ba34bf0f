"""Whether a model leaks its training images: copies among generated images, and membership in its loss."""

from medfusion_monai.audit.guard import CopyGuard, GuardError, Verdict, guard_sha256, load_guard
from medfusion_monai.audit.matching import Matcher, Matches
from medfusion_monai.audit.membership import denoising_losses, membership_figures, membership_scores
from medfusion_monai.audit.sets import AuditError
from medfusion_monai.audit.statistics import calibrate, share_figure

__all__ = [
    "AuditError",
    "CopyGuard",
    "GuardError",
    "Matcher",
    "Matches",
    "Verdict",
    "calibrate",
    "denoising_losses",
    "guard_sha256",
    "load_guard",
    "membership_figures",
    "membership_scores",
    "share_figure",
]
