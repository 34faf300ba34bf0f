"""The step of the GAN: both networks against each other, from the same images and the same weights."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines.trainer import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch import nn

from medfusion_monai.baselines.augmentation import Augmentation
from medfusion_monai.baselines.relativistic import GanLosses
from medfusion_monai.runtime.distributed import average_gradients
from medfusion_monai.training.learning_rate import GanAdam


class GanTrainer(SupervisedTrainer):
    """Trains a generator and a discriminator in float32; averages gradients over processes.

    Both take their step at the same time, by one optimizer. ``engine.state.output`` holds ``image`` (real), ``pred``
    (generated), ``loss`` (the generator's) and ``terms``.

    Args:
        discriminator: called with images and labels.
        augmentation: of the images that the discriminator sees.
        ramp: settings of the optimizer, which also say how far the ramps are at a step.
        kwargs: as ``monai.engines.SupervisedTrainer``; ``network`` is the generator, ``optimizer`` that of all weights
            of both networks, ``loss_function`` a ``RelativisticLoss``, ``prepare_batch`` a ``GanPrepareBatch``.
    """

    def __init__(self, discriminator: nn.Module, augmentation: Augmentation, ramp: GanAdam, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.discriminator, self.augmentation, self.ramp = discriminator, augmentation, ramp

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, Any]:
        noise, real, (draws,), keywords = engine.prepare_batch(batchdata, engine.state.device, engine.non_blocking)
        generator, discriminator, labels = engine.network, self.discriminator, keywords["class_labels"]
        progress = self.ramp.progress(engine.state.iteration)

        generator.train()
        fake = engine.inferer(noise, generator, **keywords)
        images = torch.cat([real, fake.detach()]).requires_grad_()
        logits = discriminator(self.augmentation(images, draws, progress), labels.repeat(2))
        losses: GanLosses = engine.loss_function(images, logits, progress)
        engine.state.output = {
            Keys.IMAGE: real,
            Keys.PRED: fake.detach(),
            Keys.LOSS: losses.generator,
            "terms": {
                "discriminator": losses.discriminator.detach(),
                "real_penalty": losses.real_penalty,
                "fake_penalty": losses.fake_penalty,
            },
        }
        engine.fire_event(IterationEvents.LOSS_COMPLETED)

        engine.optimizer.zero_grad()
        losses.discriminator.backward(inputs=list(discriminator.parameters()))
        fake.backward(losses.fake_gradients)
        # Not by DDP, whose hooks do not know the second derivatives of the penalties.
        average_gradients([*generator.parameters(), *discriminator.parameters()])
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        self.ramp.set_beta2(engine.optimizer, progress)
        engine.optimizer.step()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output
