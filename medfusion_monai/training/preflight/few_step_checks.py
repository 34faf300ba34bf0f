"""All checks before the first step of the phase that tunes a model for few steps."""

from __future__ import annotations

from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.training.preflight.run_checks import Check
from medfusion_monai.training.preflight.training_checks import TrainingChecks
from medfusion_monai.training.pretrained_start import AUTOENCODER
from medfusion_monai.weights.model_info import FEW_STEPS, require_denoiser, require_model_info


class FewStepChecks(TrainingChecks):
    """Checks settings, data and the weights to start from, then what depends on networks; see ``TrainingChecks``."""

    kind = FEW_STEPS

    def _checks_of_settings(self) -> list[Check]:
        return [*super()._checks_of_settings(), Check("networks", "phase_two", self._check_phase_two)]

    def _check_phase_two(self) -> str:
        """Check that there are weights of a finished phase two, and return how long it trained, in words."""
        pretrained, advice = self.run.pretrained, "run train_diffusion (or training) to its end"
        if pretrained.path is None or pretrained.frozen != AUTOENCODER:
            raise ValueError(
                f"pretrained_model {pretrained.given}, frozen {pretrained.frozen}: few steps need the weights of phase "
                f"two and keep their autoencoder; leave out both keys, or set frozen to {AUTOENCODER}"
            )
        if not pretrained.path.is_file():
            raise WeightsError(
                f"{pretrained.path}: there are no weights of phase two: {advice}, or set pretrained_model"
            )
        info = require_model_info(pretrained.path)
        require_denoiser(pretrained.path, info)
        if info["class_names"] != list(self.images.class_names):
            raise WeightsError(
                f"{pretrained.path} was trained for the classes {', '.join(info['class_names'])}, this run has "
                f"{', '.join(self.images.class_names)}: train phase two for these first"
            )
        training = info.get("training") or {}
        if training.get("finished") is False:
            raise WeightsError(
                f"{pretrained.path} is of step {training.get('steps')} of a phase two that has not come to its end: "
                f"{advice}, or set pretrained_model"
            )
        return f"{pretrained.path.name}, {training.get('steps', 'unknown')} steps"
