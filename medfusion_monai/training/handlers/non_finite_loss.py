"""Handlers that keep training stable, or stop it."""

from __future__ import annotations

from typing import Any, NamedTuple

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor, nn


class NonFiniteLossError(RuntimeError):
    """The loss or a gradient became infinite or not a number."""


class _Values(NamedTuple):
    """Losses of all processes (processes, losses) and the gradients' norm, if it is there, of one step."""

    step: int
    names: list[str]
    losses: Tensor
    norm: Tensor | None = None
    copied: torch.cuda.Event | None = None

    def on_the_way_to_the_host(self) -> _Values:
        """Start to copy them; wait for ``copied`` before looking."""
        losses, norm = (None if x is None else x.to("cpu", non_blocking=True) for x in (self.losses, self.norm))
        copied = None
        if self.losses.is_cuda:
            copied = torch.cuda.Event()
            copied.record()
        assert losses is not None
        return self._replace(losses=losses, norm=norm, copied=copied)

    def are_finite(self) -> Tensor:
        """Whether all are finite, as a tensor where they are."""
        finite = torch.isfinite(self.losses).all()
        return finite if self.norm is None else finite & torch.isfinite(self.norm)


class StopOnNonFiniteLoss:
    """Stops training before a loss or gradient that is not finite reaches the weights, and clips gradients.

    Attach it to a trainer before anything that acts on ``IterationEvents.BACKWARD_COMPLETED``. Of several processes all
    stop when one has such a loss; gradients must be averaged before they come here.

    Looking at a value of a GPU means to wait for it. With ``wait=False`` nobody does: the optimizer passes over the
    step on the GPU itself, and training stops before the next one is taken, or at the end of the epoch before anything
    else. This is for trainers with one optimizer that is fused and no ``GradScaler``; with others it waits.

    Args:
        network: the network that is trained.
        max_norm: gradients of a larger norm are scaled down to it; None does not clip.
        kept: where the last good weights are, for the message.
        wait: whether to look at the values of a step before it is taken.
    """

    def __init__(
        self,
        network: nn.Module,
        max_norm: float | None = None,
        kept: str = "the checkpoint folder",
        wait: bool = True,
    ) -> None:
        if max_norm is not None and max_norm <= 0:
            raise ValueError(f"max_norm must be positive or None, received {max_norm}")
        self.network, self.max_norm, self.kept, self.wait = network, max_norm, kept, wait
        self._now: _Values | None = None
        self._before: _Values | None = None

    def attach(self, engine: Engine) -> None:
        """Look at the loss before the backward pass and at the gradients after it."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self.clip)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.look_back)

    def start(self, engine: Engine) -> None:
        """Forget an earlier run."""
        self._now = self._before = None
        optimizer: Any = getattr(engine, "optimizer", None)
        if hasattr(optimizer, "found_inf"):
            del optimizer.found_inf

    def __call__(self, engine: Any) -> None:
        """Raise a NonFiniteLossError if the loss, or a term of it that is logged apart, is not finite."""
        losses = {"loss": engine.state.output[Keys.LOSS], **engine.state.output.get("terms", {})}
        own = torch.stack([value.detach() for value in losses.values()])
        gathered: Any = idist.all_gather(own[None])
        self._now = _Values(engine.state.iteration, list(losses), gathered)
        if not self._is_late(engine):
            self._check(self._now)

    def clip(self, engine: Any) -> None:
        """Clip the gradients; raise a NonFiniteLossError if their norm is not finite."""
        scaler = getattr(engine, "scaler", None)
        if scaler is not None:
            scaler.unscale_(engine.optimizer)
        max_norm = float("inf") if self.max_norm is None else self.max_norm
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), max_norm)
        if scaler is not None:  # it passes over steps whose norm is not finite, and goes on
            return
        now = self._now or _Values(engine.state.iteration, [], norm.new_zeros(1, 0))
        values = now._replace(norm=norm.detach())
        if self._is_late(engine):
            self._pass_over(engine.optimizer, values)
        else:
            self._check(values)

    def look_back(self, engine: Engine) -> None:
        """Raise the error of a step that was passed over, if there was one."""
        self._look_back()

    def _is_late(self, engine: Any) -> bool:
        if self.wait or getattr(engine, "scaler", None) is not None:
            return False
        return getattr(engine.optimizer, "_step_supports_amp_scaling", False)  # set by fused ones

    def _pass_over(self, optimizer: Any, values: _Values) -> None:
        """Have the optimizer skip the step if a value is not finite; then look at the step before."""
        optimizer.found_inf = (~values.are_finite()).float()  # fused optimizers look at it, as they do for a GradScaler
        on_the_way = values.on_the_way_to_the_host()
        self._look_back()
        self._before = on_the_way

    def _look_back(self) -> None:
        values, self._before = self._before, None
        if values is not None:
            if values.copied is not None:
                values.copied.synchronize()
            self._check(values)

    def _check(self, values: _Values) -> None:
        if values.are_finite():
            return
        wrong = (~torch.isfinite(values.losses)).nonzero()
        if not len(wrong):
            assert values.norm is not None
            raise NonFiniteLossError(self._message("gradient norm", float(values.norm), values.step))
        rank, index = wrong[0].tolist()
        name = values.names[index] + (f" of process {rank}" if len(values.losses) > 1 else "")
        raise NonFiniteLossError(self._message(name, float(values.losses[rank, index]), values.step))

    def _message(self, what: str, value: float, step: int) -> str:
        return (
            f"training stopped at step {step}: the {what} is {value}. The step was not taken; the last good weights "
            f"are kept in {self.kept}. Look at the images and labels, lower the learning rate or max_grad_norm, and "
            "run the same command again to go on from the last checkpoint"
        )
