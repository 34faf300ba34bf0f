"""The step of phase two: micro-batches, precision, and an error with advice if a batch is too large."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medfusion_monai.losses.denoising import DiffusionLoss
from medfusion_monai.losses.distillation import DistillationLoss
from medfusion_monai.runtime.dtype import autocast, full_precision
from medfusion_monai.runtime.errors import is_out_of_memory
from medfusion_monai.runtime.memory_format import lay_out_optimizer_state
from medfusion_monai.runtime.out_of_memory import BatchTooLargeError, largest_that_fits
from medfusion_monai.runtime.values import is_whole

Batch = dict[str, Any]
Output = dict[Any, Tensor]


class DiffusionStep:
    """One training step, for MONAI's ``SupervisedTrainer(iteration_update=...)``.

    A batch can go through the network in micro-batches; the gradients are those of the mean loss of the whole batch.
    The network runs in ``dtype``; weights, loss and gradients are float32. ``engine.state.output`` holds ``image``,
    ``label``, ``pred`` and ``loss`` of the whole batch, detached. MONAI's iteration events fire once per step: those of
    forward pass and loss before the last micro-batch's backward pass, the others after it.

    Pass it to ``TrainingCheckpoint`` as well, to resume with the loss scale of float16.

    Args:
        micro_batch_size: images per micro-batch, or None for all.
        dtype: of the forward pass, see ``choose_precision``.

    Raises:
        ValueError: if ``micro_batch_size`` is not an integer of at least 1.
    """

    def __init__(self, micro_batch_size: int | None = None, dtype: torch.dtype = torch.float32) -> None:
        if micro_batch_size is not None and (not is_whole(micro_batch_size) or micro_batch_size < 1):
            raise ValueError(
                f"micro_batch_size must be an integer of at least 1, or None, received {micro_batch_size!r}"
            )
        self.micro_batch_size, self.dtype = micro_batch_size, dtype
        self.scaler: torch.amp.GradScaler | None = None
        self._scaler_state: dict[str, Any] = {}
        self._restored = True

    def __call__(self, engine: Any, batch: Batch) -> dict[str, Any]:
        """Train on a batch with ``label`` (B,) and the other inputs of ``engine.prepare_batch``.

        Raises:
            BatchTooLargeError: if memory runs out; states the micro-batch size measured to fit.
        """
        try:
            return self._step(engine, batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
        # Outside the except clause, whose traceback keeps the memory alive.
        raise self._too_large(engine, batch, reason)

    def state_dict(self) -> dict[str, Any]:
        """Return the loss scale of float16; empty for other types."""
        return self._scaler_state if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the loss scale; other types ignore it, and without one float16 starts with the default."""
        self._restored = True
        self._scaler_state = state if self.dtype is torch.float16 else {}
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)

    def _step(self, engine: Any, batch: Batch) -> dict[str, Any]:
        self._scale_losses_of(engine)
        if self._restored:
            lay_out_optimizer_state(engine.optimizer)
            self._restored = False
        engine.network.train()
        engine.optimizer.zero_grad(set_to_none=True)
        self._accumulate(engine, batch)
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if self.scaler is None:
            engine.optimizer.step()
        else:
            self.scaler.step(engine.optimizer)
            self.scaler.update()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _accumulate(self, engine: Any, batch: Batch) -> None:
        """Run forward and backward passes of all micro-batches, and set the output of the engine."""
        total = len(batch[Keys.LABEL])
        outputs: list[Output] = []
        for part in self._micro_batches(batch):
            count, done = len(part[Keys.LABEL]), sum(len(output[Keys.PRED]) for output in outputs)
            last = done + count == total
            with nullcontext() if last else _unsynchronized(engine.network):
                loss, output = self._forward(engine, part)
                loss = loss * (count / total)
                outputs.append({**output, Keys.LOSS: loss.detach()})
                if last:
                    engine.state.output = _joined(outputs)
                    engine.fire_event(IterationEvents.FORWARD_COMPLETED)
                    engine.fire_event(IterationEvents.LOSS_COMPLETED)
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def _forward(self, engine: Any, batch: Batch) -> tuple[Tensor, Output]:
        prepared = engine.prepare_batch(batch, engine.state.device, engine.non_blocking, **engine.to_kwargs)
        inputs, target, arguments, keywords = prepared if len(prepared) == 4 else (*prepared, (), {})
        with autocast(engine.state.device, self.dtype, cached=False):  # a UNet uses each weight once
            prediction = engine.inferer(inputs, engine.network, *arguments, **keywords)
        prediction = full_precision(prediction)
        if isinstance(engine.loss_function, DiffusionLoss | DistillationLoss):
            loss = engine.loss_function(prediction, target, timesteps=keywords.get("timesteps"))
        else:
            loss = engine.loss_function(prediction, target).mean()
        return loss, {Keys.IMAGE: inputs, Keys.LABEL: target, Keys.PRED: prediction.detach()}

    def _micro_batches(self, batch: Batch) -> Iterator[Batch]:
        total = len(batch[Keys.LABEL])
        size = self.micro_batch_size or total
        if size >= total:
            yield batch
            return
        for start in range(0, total, size):
            yield _part_of(batch, start, start + size)

    def _scale_losses_of(self, engine: Any) -> None:
        """Create the loss scaler of float16, and set ``engine.scaler``, which MONAI's handlers read."""
        if self.dtype is torch.float16 and self.scaler is None:
            self.scaler = torch.amp.GradScaler(torch.device(engine.state.device).type)
            if self._scaler_state:
                self.scaler.load_state_dict(self._scaler_state)
        engine.scaler = self.scaler

    def _too_large(self, engine: Any, batch: Batch, reason: str) -> BatchTooLargeError:
        total = len(batch[Keys.LABEL])
        tried = min(self.micro_batch_size or total, total)
        fits = largest_that_fits(lambda count: self._try(engine, batch, count), tried)
        engine.optimizer.zero_grad(set_to_none=True)
        batch_kind = f"a batch of {tried}" if tried == total else f"a micro-batch of {tried} of {total}"
        if fits:
            advice = f"{fits} were measured to fit: add --micro_batch_size {fits}, with the same results"
        else:
            advice = "not even one fits: set gradient_checkpointing, make the network narrower, or use another device"
        return BatchTooLargeError(
            f"{batch_kind} images does not fit into the memory of {engine.state.device}; {advice} ({reason})"
        )

    def _try(self, engine: Any, batch: Batch, count: int) -> None:
        """Use the memory of a step of micro-batches: two passes, and the optimizer's two averages."""
        engine.state.output = None
        engine.optimizer.zero_grad(set_to_none=True)
        room = (
            [] if engine.optimizer.state else [torch.empty_like(p) for p in engine.network.parameters() for _ in "ab"]
        )
        part = _part_of(batch, 0, count)
        for _ in range(2):
            with _unsynchronized(engine.network):
                self._forward(engine, part)[0].backward()
        del room


def _unsynchronized(network: nn.Module) -> AbstractContextManager[Any]:
    """Skip averaging gradients over processes until the last backward pass of a step."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()


def _part_of(batch: Batch, start: int, stop: int) -> Batch:
    """Return a slice of a batch, whose values have one entry per image."""
    return {name: values[start:stop] for name, values in batch.items()}


def _joined(outputs: list[Output]) -> Output:
    if len(outputs) == 1:
        return outputs[0]
    joined = {name: torch.cat([part[name] for part in outputs]) for name in (Keys.IMAGE, Keys.LABEL, Keys.PRED)}
    return {**joined, Keys.LOSS: torch.stack([part[Keys.LOSS] for part in outputs]).sum()}
