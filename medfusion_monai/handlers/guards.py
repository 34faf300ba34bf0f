"""Handlers that keep training stable, or stop it."""

from __future__ import annotations

from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch import nn


class NonFiniteLossError(RuntimeError):
    """The loss or a gradient became infinite or not a number."""


class StopOnNonFiniteLoss:
    """Stops training before a loss or gradient that is not finite reaches the weights, and clips gradients.

    Attach it to a trainer before anything that acts on ``IterationEvents.BACKWARD_COMPLETED``. Of several processes all
    stop when one has such a loss; gradients must be averaged before they come here.

    Args:
        network: the network that is trained.
        max_norm: gradients of a larger norm are scaled down to it; None does not clip.
        kept: where the last good weights are, for the message.
    """

    def __init__(self, network: nn.Module, max_norm: float | None = None, kept: str = "the checkpoint folder") -> None:
        if max_norm is not None and max_norm <= 0:
            raise ValueError(f"max_norm must be positive or None, received {max_norm}")
        self.network, self.max_norm, self.kept = network, max_norm, kept

    def attach(self, engine: Engine) -> None:
        """Look at the loss before the backward pass and at the gradients after it."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self.clip)

    def __call__(self, engine: Any) -> None:
        """Raise a NonFiniteLossError if the loss, or a term of it that is logged apart, is not finite."""
        losses = {"loss": engine.state.output[Keys.LOSS], **engine.state.output.get("terms", {})}
        own = torch.stack([value.detach() for value in losses.values()])
        values: Any = idist.all_gather(own[None])  # (processes, losses)
        if not torch.isfinite(values).all():
            rank, index = (~torch.isfinite(values)).nonzero()[0].tolist()
            name = list(losses)[index] + (f" of process {rank}" if len(values) > 1 else "")
            raise NonFiniteLossError(self._message(name, float(values[rank, index]), engine.state.iteration))

    def clip(self, engine: Any) -> None:
        """Clip the gradients; raise a NonFiniteLossError if their norm is not finite."""
        scaler = getattr(engine, "scaler", None)
        if scaler is not None:
            scaler.unscale_(engine.optimizer)
        max_norm = float("inf") if self.max_norm is None else self.max_norm
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), max_norm)
        if scaler is None and not torch.isfinite(norm):
            raise NonFiniteLossError(self._message("gradient norm", float(norm), engine.state.iteration))

    def _message(self, what: str, value: float, step: int) -> str:
        return (
            f"training stopped at step {step}: the {what} is {value}. The step was not taken; the last good weights "
            f"are kept in {self.kept}. Look at the images and labels, lower the learning rate or max_grad_norm, and "
            "run the same command again to go on from the last checkpoint"
        )
