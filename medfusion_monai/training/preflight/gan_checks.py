"""All checks before the first step of the training of a GAN."""

from __future__ import annotations

from medfusion_monai.training.preflight.run_checks import Check
from medfusion_monai.training.preflight.training_checks import TrainingChecks
from medfusion_monai.weights.model_info import GAN


class GanChecks(TrainingChecks):
    """Checks settings and data of the training of a GAN, then what depends on its networks; see ``TrainingChecks``."""

    kind = GAN

    def _checks_of_settings(self) -> list[Check]:
        own = [
            Check("settings", "class_names", self._refuse_one_class),
            Check("settings", "gan_precision", self._refuse_unused),
            Check("networks", "gan_batch_size", self._refuse_large_batch),
        ]
        return [*super()._checks_of_settings(), *own]

    def _check_start(self) -> None:
        if self.run.pretrained.given is not None:
            raise ValueError(
                f"pretrained_model {self.run.pretrained.given}: a GAN starts from random weights; leave out "
                "pretrained_model and frozen"
            )

    def _refuse_unused(self) -> None:
        run = self.run
        if run.precision not in ("auto", "float32") or run.compile is True:
            raise ValueError(
                f"precision {run.precision}, compile {run.compile}: a GAN is trained in float32 and is not compiled, "
                "as its penalties are second derivatives; leave out both"
            )

    def _refuse_one_class(self) -> None:
        if len(self.images.class_names) < 2:
            raise ValueError(
                f"class_names {list(self.images.class_names)}: the GAN draws images of a class and needs two or more"
            )

    def _refuse_large_batch(self) -> None:
        batch, count = self.phases["gan"]["batch_size"], len(self.images.training)
        if batch > count:
            raise ValueError(
                f"gan_batch_size {batch} is more than the {count} training images, which the discriminator would see "
                f"repeatedly in a step: prepare more images, or set gan_batch_size to at most {count}"
            )
