"""The trainer of phase one. Phase two is MONAI's ``SupervisedTrainer`` with ``DiffusionPrepareBatch``."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from monai.engines.trainer import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor

from medfusion_monai.losses.adversarial import AdversarialLoss
from medfusion_monai.networks.autoencoder import AutoencoderOutput, DiagonalGaussian
from medfusion_monai.runtime.distributed import average_gradients
from medfusion_monai.runtime.dtype import autocast, full_precision

ADVERSARIAL = ("adversarial", "adversarial_low")
"""Terms of the discriminators that are added to the loss."""


class AutoencoderTrainer(SupervisedTrainer):
    """Trains an autoencoder, with discriminators from a given step on; averages gradients over processes.

    ``engine.state.output`` holds ``image`` (the target), ``pred`` (the reconstruction), ``loss`` and ``terms`` (the
    weighted terms of the loss by name).

    Args:
        adversarial: the adversarial loss, or None to train without.
        discriminator_optimizer: optimizer of ``adversarial``, required with it.
        dtype: of the forward pass, float32 or bfloat16; weights, losses and their balance are float32.
        kwargs: as ``monai.engines.SupervisedTrainer``; ``loss_function`` is a ``ReconstructionLoss``.

    Raises:
        ValueError: if only one of adversarial loss and its optimizer is given, for ``amp``, or for float16.
    """

    def __init__(
        self,
        adversarial: AdversarialLoss | None = None,
        discriminator_optimizer: torch.optim.Optimizer | None = None,
        dtype: torch.dtype = torch.float32,
        **kwargs: Any,
    ) -> None:
        if (adversarial is None) != (discriminator_optimizer is None):
            raise ValueError("adversarial and discriminator_optimizer must be passed together: pass both or neither")
        if kwargs.get("amp"):
            raise ValueError("AutoencoderTrainer does not support amp: set dtype instead")
        if dtype is torch.float16:
            raise ValueError(
                "AutoencoderTrainer does not scale losses, which float16 requires: set dtype to bfloat16 or float32"
            )
        super().__init__(**kwargs)
        self.adversarial, self.dtype = adversarial, dtype
        self.discriminator_optimizer = discriminator_optimizer

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, Any]:
        inputs, image, _, keywords = engine.prepare_batch(batchdata, engine.state.device, engine.non_blocking)
        adversarial = self.adversarial
        if adversarial is not None and not adversarial.active(engine.state.iteration):
            adversarial = None

        engine.network.train()
        with self._autocast():
            output = engine.inferer(inputs, engine.network, **keywords)
        if self.dtype is not torch.float32:
            output = _in_full_precision(output)
        terms: dict[str, Tensor] = engine.loss_function(output, image)
        loss = terms.pop("loss")
        if adversarial is not None:
            with self._autocast():
                generator = adversarial.generator_loss(
                    output, _by_resolution(terms), engine.network.output_layers, engine.loss_function.scale(image)
                )
                terms |= generator
                terms["discriminator"] = adversarial.discriminator_loss(output, image)
            terms = {name: full_precision(term) for name, term in terms.items()}
            loss = loss + sum(terms[name] for name in ADVERSARIAL if name in generator)
        engine.state.output = {Keys.IMAGE: image, Keys.PRED: output.reconstruction.detach(), Keys.LOSS: loss}
        engine.state.output["terms"] = terms
        engine.fire_event(IterationEvents.LOSS_COMPLETED)

        engine.optimizer.zero_grad()
        loss.backward()
        # Not by DDP, whose hooks miss the gradient norms that balance the adversarial loss outside the backward pass.
        average_gradients(engine.network.parameters())
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        engine.optimizer.step()
        if adversarial is not None and self.discriminator_optimizer is not None:
            self.discriminator_optimizer.zero_grad()
            terms["discriminator"].backward()
            average_gradients(adversarial.parameters())
            self.discriminator_optimizer.step()
        engine.state.output[Keys.LOSS] = loss.detach()
        engine.state.output["terms"] = {name: term.detach() for name, term in terms.items()}
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.state.device, self.dtype)


def _in_full_precision(output: AutoencoderOutput) -> AutoencoderOutput:
    posterior = output.posterior
    if posterior is not None:
        posterior = DiagonalGaussian(full_precision(torch.cat([posterior.mean, posterior.logvar], dim=1)))
    low = None if output.reconstruction_low is None else full_precision(output.reconstruction_low)
    return AutoencoderOutput(full_precision(output.reconstruction), low, posterior)


def _by_resolution(terms: dict[str, Tensor]) -> list[Tensor]:
    """Return the sums of the reconstruction terms at full and, if there are any, at half resolution."""
    low = [name for name in terms if name.endswith("_low")]
    full = [name for name in terms if name not in low and name != "kl"]
    return [torch.stack([terms[name] for name in names]).sum() for names in (full, low) if names]
