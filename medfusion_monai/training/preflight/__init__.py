"""Checks before the first step of a training, which would otherwise fail after days."""

from medfusion_monai.training.preflight.decoder_checks import DecoderChecks
from medfusion_monai.training.preflight.few_step_checks import FewStepChecks
from medfusion_monai.training.preflight.gan_checks import GanChecks
from medfusion_monai.training.preflight.run_checks import PreflightError
from medfusion_monai.training.preflight.training_checks import TrainingChecks

__all__ = ["DecoderChecks", "FewStepChecks", "GanChecks", "PreflightError", "TrainingChecks"]
