"""Stops a training whose loss or gradient is no longer finite, and clips gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor, nn

from medfusion_monai.runtime.values import check_numbers


class NonFiniteLossError(RuntimeError):
    """The loss or a gradient became infinite or NaN."""


class _Values(NamedTuple):
    """Losses of all processes (processes, losses) and the norm of the gradients of one step."""

    step: int
    names: list[str]
    losses: Tensor
    norm: Tensor
    copied: torch.cuda.Event | None = None

    def copy_to_host(self) -> _Values:
        """Start copying to the host; wait for ``copied`` before reading the copies."""
        losses, norm = (values.to("cpu", non_blocking=True) for values in (self.losses, self.norm))
        copied = None
        if self.losses.is_cuda:
            copied = torch.cuda.Event()
            copied.record()
        return self._replace(losses=losses, norm=norm, copied=copied)

    def are_finite(self) -> Tensor:
        """Whether all are finite, as a tensor on their device."""
        return torch.isfinite(self.losses).all() & torch.isfinite(self.norm)


class StopOnNonFiniteLoss:
    """Stops training before a non-finite loss or gradient reaches the weights, and clips gradients.

    Attach it to a trainer before any other handler of ``IterationEvents.BACKWARD_COMPLETED``. If one of several
    processes has a non-finite loss, all stop; gradients must already be averaged over processes.

    Reading a value from a GPU means waiting for it. With ``wait=False`` the fused optimizer itself skips the step on
    the GPU, and training stops before the next step, or at the end of the epoch before any other handler. Only a
    single fused optimizer can do that: a trainer with a discriminator, a ``GradScaler`` or another kind of optimizer
    waits all the same.

    Args:
        network: the network being trained.
        max_norm: gradients with a larger norm are scaled down to it; None disables clipping.
        kept: where the last good weights are, for the message.
        wait: whether to check the values of a step before the optimizer takes it.
    """

    def __init__(
        self,
        network: nn.Module,
        max_norm: float | None = None,
        kept: str = "the checkpoint folder",
        wait: bool = True,
    ) -> None:
        if max_norm is not None:
            check_numbers(above=True, max_norm=max_norm)
        self.network, self.max_norm, self.kept, self.wait = network, max_norm, kept, wait
        self._before: _Values | None = None

    def attach(self, engine: Engine) -> None:
        """Check after every backward pass."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.look_back)

    def start(self, engine: Engine) -> None:
        """Forget an earlier run."""
        self._before = None
        optimizer: Any = getattr(engine, "optimizer", None)
        if hasattr(optimizer, "found_inf"):
            del optimizer.found_inf

    def __call__(self, engine: Any) -> None:
        """Clip the gradients, and check their norm, the loss and each of its terms.

        Raises:
            NonFiniteLossError: if one of them is not finite; with ``wait=False`` one step later.
        """
        losses = {"loss": engine.state.output[Keys.LOSS], **engine.state.output.get("terms", {})}
        own = torch.stack([value.detach() for value in losses.values()])
        gathered: Any = idist.all_gather(own[None])
        values = _Values(engine.state.iteration, list(losses), gathered, self._clip(engine))
        if self._optimizer_can_skip(engine):
            self._skip_unless_finite(engine.optimizer, values)
        else:
            self._check(values)

    def look_back(self, engine: Engine) -> None:
        """Raise the error of the last step if it was skipped."""
        self._look_back()

    def _clip(self, engine: Any) -> Tensor:
        """Clip the gradients and return their norm; 0 with a scaler, which skips non-finite steps and continues."""
        scaler = getattr(engine, "scaler", None)
        if scaler is not None:
            scaler.unscale_(engine.optimizer)
        max_norm = float("inf") if self.max_norm is None else self.max_norm
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), max_norm).detach()
        return norm if scaler is None else torch.zeros_like(norm)

    def _optimizer_can_skip(self, engine: Any) -> bool:
        others = (getattr(engine, name, None) for name in ("scaler", "discriminator_optimizer"))
        if self.wait or any(other is not None for other in others):
            return False
        return getattr(engine.optimizer, "_step_supports_amp_scaling", False)  # set by fused optimizers

    def _skip_unless_finite(self, optimizer: Any, values: _Values) -> None:
        """Have the optimizer skip the step if a value is not finite; then check the step before."""
        optimizer.found_inf = (~values.are_finite()).float()  # fused optimizers read it, as with a GradScaler
        copies = values.copy_to_host()
        self._look_back()
        self._before = copies

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
            raise NonFiniteLossError(self._message("gradient norm", float(values.norm), values.step))
        rank, index = wrong[0].tolist()
        name = values.names[index] + (f" of process {rank}" if len(values.losses) > 1 else "")
        raise NonFiniteLossError(self._message(name, float(values.losses[rank, index]), values.step))

    def _message(self, what: str, value: float, step: int) -> str:
        return (
            f"training stopped at step {step}: the {what} is {value}. The step was not taken; the last good weights "
            f"are kept in {self.kept}. Check the images and labels, lower the learning rate or max_grad_norm, and "
            "run the same command again to resume from the last checkpoint"
        )
