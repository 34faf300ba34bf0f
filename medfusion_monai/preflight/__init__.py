"""What is checked before the first step of a training, so that it does not fail after days."""

from medfusion_monai.preflight.checks import PreflightError
from medfusion_monai.preflight.training import TrainingChecks

__all__ = ["PreflightError", "TrainingChecks"]
