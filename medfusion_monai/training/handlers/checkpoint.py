"""Checkpoints to resume from, and the best weights so far."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import nn

from medfusion_monai.data.training.stream import StreamSampler
from medfusion_monai.runtime.distributed import gather
from medfusion_monai.runtime.files import file_sha256, renamed_when_whole
from medfusion_monai.runtime.values import differences_of, flat_settings, is_whole
from medfusion_monai.weights.model_info import write_model_info
from medfusion_monai.weights.state_dict import save_atomically, save_weights

logger = logging.getLogger(__name__)

KEPT_NOTES = 16  # more than there are files: saves that were killed before their file took its place leave theirs


class Stateful(Protocol):
    """Anything with a state dict: networks, optimizers, handlers."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Restore the state."""


class CheckpointError(ValueError):
    """A training checkpoint that cannot be resumed from."""


def previous_of(path: Path) -> Path:
    """Return the path of the checkpoint before the last."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def write_checked(state: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint, keep the one before, and record the SHA-256 of both.

    The checksums are written first and include those of earlier files, so that a kill at any moment leaves a complete
    file whose checksum is known.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with renamed_when_whole(path) as partial:
        save_atomically(state, partial)
        noted = list(dict.fromkeys([*_noted(path), file_sha256(partial)]))[-KEPT_NOTES:]
        with renamed_when_whole(_notes_of(path)) as notes:
            notes.write_text("".join(f"{digest}\n" for digest in noted))
        if path.is_file():
            os.replace(path, previous_of(path))


def read_checked(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Raises:
        ValueError: if its SHA-256 is not among the recorded ones; without a record it is not compared.
        Exception: whatever reading a damaged file raises.
    """
    noted = _noted(path)
    if noted and file_sha256(path) not in noted:
        raise ValueError("its SHA-256 is not the one recorded when it was written")
    return torch.load(path, map_location="cpu", weights_only=True)


def _notes_of(path: Path) -> Path:
    return path.with_name(f"{path.stem.removesuffix('.previous')}.sha256")


def _noted(path: Path) -> list[str]:
    notes = _notes_of(path)
    return notes.read_text().split() if notes.is_file() else []


class TrainingCheckpoint:
    """Saves everything that a restart needs at the end of epochs, and resumes from it when training starts.

    Attach it last, so that it includes the validation of the same epoch; only ``StopOnSignal`` comes after it. Random
    states need no saving: orders, transforms and noise are functions of the seed and the position
    (``SeededDataset``). Of several processes the first saves and all load, so that a run may resume with another
    number of processes as long as a step has the same number of images.

    A checkpoint within an epoch is resumed like one at its end. If it was saved after the last step of an epoch but
    before the handlers of its end (validation, pictures), these run first.

    The checkpoint before the last stays beside it. The SHA-256 of each file is recorded before the file takes its
    place; a file with another checksum, or a missing one, is reported, and the one before is used.

    Args:
        path: the checkpoint file; written beside and renamed, so that a kill leaves the one before.
        objects: what to save and restore, by name.
        sampler: sampler of the batches; set to the position where training resumes.
        settings: settings that must be the same in the run that resumes, e.g. data and seed; values may be nested.
        changeable: settings that the run that resumes may change, e.g. the learning rate; changes are logged.
        interval: epochs between checkpoints.
        resume: whether to resume from the file if it exists; otherwise it is overwritten.
        every_steps: steps between further checkpoints within epochs; None for none.
        writer: a TensorBoard ``SummaryWriter`` whose values up to a checkpoint must not be lost after it, or None.

    Raises:
        ValueError: if ``every_steps`` is not an integer of at least 1.
    """

    def __init__(
        self,
        path: str | Path,
        objects: Mapping[str, Stateful],
        sampler: StreamSampler,
        settings: Mapping[str, Any] | None = None,
        changeable: Mapping[str, Any] | None = None,
        interval: int = 1,
        resume: bool = True,
        every_steps: int | None = None,
        writer: Any | None = None,
    ) -> None:
        if every_steps is not None and (not is_whole(every_steps) or every_steps < 1):
            raise ValueError(f"every_steps must be an integer of at least 1, or None, received {every_steps!r}")
        self.path, self.objects, self.sampler = Path(path), dict(objects), sampler
        self.settings, self.changeable = flat_settings(settings or {}), flat_settings(changeable or {})
        self.interval, self.resume = interval, resume
        self.every_steps, self.writer = every_steps, writer
        self.saved: tuple[int, bool] | None = None
        self._loaded = False

    def attach(self, engine: Engine) -> None:
        """Load when training starts; save at the end of epochs and, with ``every_steps``, within them."""
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)
        if self.every_steps is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.every_steps), self.within_epoch)

    def __call__(self, engine: Engine) -> None:
        """Save at the end of an epoch."""
        self.save(engine, epoch_completed=True)

    def within_epoch(self, engine: Engine) -> None:
        """Save after a step, except the last of an epoch, whose end saves."""
        if engine.state.iteration % (engine.state.epoch_length or 1):
            self.save(engine, epoch_completed=False)

    def save(self, engine: Engine, epoch_completed: bool) -> None:
        """Save, in the first process.

        Args:
            engine: the trainer, after a step.
            epoch_completed: whether the handlers of the epoch's end have run, if this is the end of one.
        """
        self.saved = engine.state.iteration, epoch_completed
        if idist.get_rank() > 0:
            return
        if self.writer is not None:
            self.writer.flush()
        state = {
            "iteration": engine.state.iteration,
            "epoch_completed": epoch_completed,
            "images_per_step": self._images_per_step,
            "settings": self.settings,
            "changeable": self.changeable,
            "objects": {name: item.state_dict() for name, item in self.objects.items()},
        }
        write_checked(state, self.path)

    def load(self, engine: Engine) -> None:
        """Resume from the file, if there is one; a trainer that is run again continues where it is.

        A federated client runs its trainer once per round, with weights from the server in between.

        Raises:
            CheckpointError: if no file is complete, if it belongs to a run with other settings, or if not all
                processes see the same file.
        """
        if self._loaded:
            self.sampler.start_iteration = engine.state.iteration
            return
        self._loaded, unfinished = True, False
        if self.resume and any(path.is_file() for path in (self.path, previous_of(self.path))):
            unfinished = self._restore(engine)
        elif idist.get_rank() == 0:  # a damaged file of this run must not fall back to one of another run
            for path in (previous_of(self.path), _notes_of(self.path)):
                path.unlink(missing_ok=True)
        iterations = gather(engine.state.iteration)
        if len(set(iterations)) > 1:
            raise CheckpointError(
                f"checkpoint {self.path} is not the same for all processes (steps {iterations}): set ckpt_dir to a "
                "folder that all hosts share"
            )
        if unfinished:
            engine.fire_event(Events.EPOCH_COMPLETED)

    @property
    def _images_per_step(self) -> int:
        return self.sampler.batch_size * self.sampler.world_size

    def _restore(self, engine: Engine) -> bool:
        """Restore everything and return whether the handlers of an epoch's end still have to run."""
        afresh = (
            f"; to start from scratch, pass --resume false, or delete {self.path} and {previous_of(self.path).name}"
        )
        state = self._read(afresh)
        changes = differences_of(state["settings"], self.settings)
        if changes:
            may_change = f". Only {', '.join(sorted(self.changeable))} may change" if self.changeable else ""
            raise CheckpointError(
                f"checkpoint {self.path} belongs to another run: {'; '.join(changes)}{may_change}{afresh}"
            )
        images = state["images_per_step"]
        if images != self._images_per_step:
            raise CheckpointError(
                f"checkpoint {self.path} is of steps of {images} images, now they have {self._images_per_step}: choose "
                f"a batch size and a number of processes whose product is {images}{afresh}"
            )
        try:
            for name, item in self.objects.items():
                item.load_state_dict(state["objects"][name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"checkpoint {self.path} does not fit these networks: {error}{afresh}") from error
        engine.state.iteration = self.sampler.start_iteration = state["iteration"]
        engine.state.epoch, within = divmod(state["iteration"], engine.state.epoch_length or 1)
        logger.info("%s: resuming after step %d", self.path.stem, state["iteration"])
        for change in differences_of(state["changeable"], self.changeable):
            logger.info("%s: %s", self.path.stem, change)
        return within == 0 and not state["epoch_completed"]

    def _read(self, advice: str) -> dict[str, Any]:
        """Read the newest complete checkpoint."""
        problems: list[tuple[Path, Exception]] = []
        for path in (self.path, previous_of(self.path)):
            try:
                state = read_checked(path)
                state["iteration"], state["settings"]  # a file without them is not a checkpoint
            except Exception as error:
                problems.append((path, error))
                continue
            for damaged, reason in problems:
                logger.warning("checkpoint %s cannot be read (%s): resuming from %s", damaged, reason, path.name)
            return state
        damaged, reason = problems[0]
        raise CheckpointError(f"checkpoint {damaged} cannot be read: it is damaged{advice}") from reason


class BestWeights:
    """Saves a network's weights whenever the validation is the best so far, or the latest from ``latest_from`` on.

    Attach it to the evaluator, and give it to ``TrainingCheckpoint`` as well, so that a restart remembers the best.
    Of several processes the first writes.

    Args:
        path: where the state dict goes.
        network: the network to save.
        metric: name of a metric of the evaluator, lower is better.
        latest_from: epoch from which each validation with a finite metric replaces the weights: the adversarial phase
            makes images sharper and the reconstruction loss larger, so that its lowest is that of the softest images.
        info: returns the description of the weights when they are saved; written beside them as JSON.
    """

    def __init__(
        self,
        path: str | Path,
        network: nn.Module,
        metric: str = "val_loss",
        latest_from: int | None = None,
        info: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        self.path, self.network, self.metric, self.latest_from = Path(path), network, metric, latest_from
        self.best, self.epoch, self.info = float("inf"), 0, info

    def attach(self, engine: Engine) -> None:
        """Check the metric after every run of the evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save if the metric is the best so far, or from ``latest_from`` on if it is finite."""
        metrics = {name: float(value) for name, value in engine.state.metrics.items()}
        latest = self.latest_from is not None and engine.state.epoch >= self.latest_from
        better = math.isfinite(metrics[self.metric]) if latest else metrics[self.metric] < self.best
        values = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        reason = " (latest)" if latest else " (best)"
        logger.info("validation %d: %s%s", engine.state.epoch, values, reason if better else "")
        if better:
            self.best, self.epoch = metrics[self.metric], engine.state.epoch
            if idist.get_rank() == 0:
                save_weights(self.network, self.path)
                if self.info is not None:
                    write_model_info(self.path, self.info())

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and its epoch."""
        return {"best": self.best, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state, unless the weights are gone."""
        if self.path.is_file():
            self.best, self.epoch = state["best"], state["epoch"]
