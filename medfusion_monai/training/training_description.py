"""What ``model.json`` says of the weights of a training that goes on."""

from __future__ import annotations

from typing import Any

from medfusion_monai.data.reading.transforms import form_of
from medfusion_monai.data.training.class_shares import true_shares
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.runtime.distributed import world_size
from medfusion_monai.weights.model_info import describe_model


def describe_training(trainer: Any, schedule: NoiseSchedule | None) -> dict[str, Any]:
    """Return the contents of ``model.json`` for the current weights.

    Args:
        trainer: of a phase that ends with a model to sample.
        schedule: of the noise; None for a GAN.
    """
    dataset, model = trainer.dataset, trainer.averaged_model
    training = {
        "images": trainer.images.fingerprint,
        "image_count": len(dataset.images),
        "steps": trainer.state.iteration,
        "images_per_step": trainer.batch_size * world_size(),
        "finished": False,  # see mark_finished
        **trainer.training_run.pretrained.origin,
    }
    form, shares = form_of(dataset.images.transform), true_shares(dataset.image_labels, len(model.class_names))
    return describe_model(model, schedule, trainer.image_inferer.settings(), form, training, shares)
