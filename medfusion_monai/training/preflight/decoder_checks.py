"""All checks before the first step of the training of a small decoder."""

from __future__ import annotations

from medfusion_monai.training.preflight.training_checks import TrainingChecks


class DecoderChecks(TrainingChecks):
    """Checks settings and data of the training of a small decoder, whose weights may lie beside those it starts from.

    See ``TrainingChecks``.
    """

    def _check_start(self) -> None:
        if self.run.pretrained.given is None:
            raise ValueError(
                "pretrained_model is null: a small decoder imitates that of a trained model; name its weights or its "
                "folder, or leave the key out for those in model_dir"
            )

    def _refuse_other_kind(self) -> None:
        """A small decoder replaces no weights, of whatever kind they are."""
