"""Checkpoints to go on from, and the best weights so far."""

from __future__ import annotations

import json
import logging
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
from medfusion_monai.runtime.values import is_whole
from medfusion_monai.weights.model_info import write_model_info
from medfusion_monai.weights.state_dict import save_atomically, save_weights

logger = logging.getLogger(__name__)

KEPT_NOTES = 16  # more than there are files: saves that were killed before their file took its place leave theirs


class Stateful(Protocol):
    """Anything with a state dict: networks, optimizers, handlers."""

    def state_dict(self) -> dict[str, Any]:
        """Give the state."""

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Restore the state."""


class CheckpointError(ValueError):
    """A training checkpoint that cannot be gone on from."""


def previous_of(path: Path) -> Path:
    """Give the place of the checkpoint before the last."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def write_checked(state: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint, keep the one before, and note the SHA-256 of both.

    The notes are written first and hold the last files' too, so that a kill at any moment leaves a whole file that
    is noted.
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
        ValueError: for a file whose SHA-256 is not among the noted ones; files without notes are taken as they are.
        Exception: whatever reading a damaged file raises.
    """
    noted = _noted(path)
    if noted and file_sha256(path) not in noted:
        raise ValueError("its SHA-256 is not the one that was noted when it was written")
    return torch.load(path, map_location="cpu", weights_only=True)


def _notes_of(path: Path) -> Path:
    return path.with_name(f"{path.stem.removesuffix('.previous')}.sha256")


def _noted(path: Path) -> list[str]:
    notes = _notes_of(path)
    return notes.read_text().split() if notes.is_file() else []


class TrainingCheckpoint:
    """Saves all that a restart needs at the end of epochs, and goes on from it when training starts.

    Attach it last, so that what it saves includes the validation of the same epoch; only ``StopOnSignal`` comes after.
    Random states need no saving: orders, transforms and noise are functions of the seed and the position
    (``SeededDataset``). Of several processes the first saves and all load, so that a run may go on with another number
    of them, as long as a step has as many images.

    A checkpoint within an epoch is gone on from like one at its end. One after an epoch's last step, but before what
    its end brings (validation, pictures), has that done first.

    The checkpoint before the last stays beside it. Each file's SHA-256 is noted before the file takes its place; one
    that has another, or is gone, is named, and the one before is gone on from.

    Args:
        path: the checkpoint file; written beside and renamed, so that a kill leaves the one before.
        objects: what to save and restore, by name.
        sampler: the batches' sampler; it is told where to go on.
        settings: what a checkpoint must agree on with the run that goes on from it, e.g. data and seed.
        interval: epochs between checkpoints.
        resume: whether to go on from the file if it is there; otherwise it is overwritten.
        every_steps: steps between further checkpoints within epochs; None for none.
        writer: a TensorBoard ``SummaryWriter`` whose lines up to a checkpoint must not be lost after it, or None.

    Raises:
        ValueError: for ``every_steps`` that is no whole number of at least 1.
    """

    def __init__(
        self,
        path: str | Path,
        objects: Mapping[str, Stateful],
        sampler: StreamSampler,
        settings: Mapping[str, Any] | None = None,
        interval: int = 1,
        resume: bool = True,
        every_steps: int | None = None,
        writer: Any | None = None,
    ) -> None:
        if every_steps is not None and (not is_whole(every_steps) or every_steps < 1):
            raise ValueError(f"every_steps must be a whole number of at least 1, or None, received {every_steps!r}")
        self.path, self.objects, self.sampler = Path(path), dict(objects), sampler
        self.settings = {name: json.dumps(value, sort_keys=True) for name, value in (settings or {}).items()}
        self.interval, self.resume = interval, resume
        self.every_steps, self.writer = every_steps, writer
        self.saved: tuple[int, bool] | None = None
        self._loaded = False

    def attach(self, engine: Engine) -> None:
        """Load when training starts, save at the end of epochs and, if wanted, within them."""
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)
        if self.every_steps is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.every_steps), self.within_epoch)

    def __call__(self, engine: Engine) -> None:
        """Save at the end of an epoch."""
        self.save(engine, epoch_completed=True)

    def within_epoch(self, engine: Engine) -> None:
        """Save after a step that is not the last of its epoch, whose end saves by itself."""
        if engine.state.iteration % (engine.state.epoch_length or 1):
            self.save(engine, epoch_completed=False)

    def save(self, engine: Engine, epoch_completed: bool) -> None:
        """Save, in the first process.

        Args:
            engine: the trainer, after a step.
            epoch_completed: whether what comes at the end of an epoch has been done, if this is the end of one.
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
            "objects": {name: item.state_dict() for name, item in self.objects.items()},
        }
        write_checked(state, self.path)

    def load(self, engine: Engine) -> None:
        """Go on from the file, if there is one; a trainer that is run again goes on from where it is.

        A federated client runs its trainer once a round, with weights that came from the server in between.

        Raises:
            CheckpointError: if no file is whole, if it belongs to a run with other settings, or if some processes see
                another file than others.
        """
        if self._loaded:
            self.sampler.start_iteration = engine.state.iteration
            return
        self._loaded, unfinished = True, False
        if self.resume and any(path.is_file() for path in (self.path, previous_of(self.path))):
            unfinished = self._restore(engine)
        elif idist.get_rank() == 0:  # what another run left is not gone on from when a file of this one is damaged
            for path in (previous_of(self.path), _notes_of(self.path)):
                path.unlink(missing_ok=True)
        iterations = gather(engine.state.iteration)
        if len(set(iterations)) > 1:
            raise CheckpointError(
                f"checkpoint {self.path} is not the same for all processes (steps {iterations}): have ckpt_dir in a "
                "folder that all hosts share"
            )
        if unfinished:
            engine.fire_event(Events.EPOCH_COMPLETED)

    @property
    def _images_per_step(self) -> int:
        return self.sampler.batch_size * self.sampler.world_size

    def _restore(self, engine: Engine) -> bool:
        """Restore everything and tell whether the end of an epoch is still to be done."""
        anew = f"; to start anew, pass --resume false, or delete {self.path} and {previous_of(self.path).name}"
        state = self._read(anew)
        iteration, settings = state["iteration"], state["settings"]
        differences = [
            f"{name} was {settings.get(name)}, now it is {self.settings.get(name)}"
            for name in sorted(self.settings.keys() | settings.keys())
            if self.settings.get(name, "null") != settings.get(name, "null")  # earlier files lack later settings
        ]
        if differences:
            raise CheckpointError(f"checkpoint {self.path} belongs to another run: {'; '.join(differences)}{anew}")
        images = state.get("images_per_step", self._images_per_step)  # earlier files do not say
        if images != self._images_per_step:
            raise CheckpointError(
                f"checkpoint {self.path} is of steps of {images} images, now they have {self._images_per_step}: choose "
                f"a batch size and a number of processes whose product is {images}{anew}"
            )
        try:
            for name, item in self.objects.items():
                if name in state["objects"] or item.state_dict():  # earlier files lack what has no state
                    item.load_state_dict(state["objects"][name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"checkpoint {self.path} does not fit these networks: {error}{anew}") from error
        engine.state.iteration = self.sampler.start_iteration = iteration
        engine.state.epoch, within = divmod(iteration, engine.state.epoch_length or 1)
        logger.info("%s: going on after step %d", self.path.stem, iteration)
        return within == 0 and not state.get("epoch_completed", True)  # earlier files are of ends of epochs

    def _read(self, advice: str) -> dict[str, Any]:
        """Read the newest checkpoint that is whole."""
        problems: list[tuple[Path, Exception]] = []
        for path in (self.path, previous_of(self.path)):
            try:
                state = read_checked(path)
                state["iteration"], state["settings"]  # what has neither is no checkpoint
            except Exception as error:
                problems.append((path, error))
                continue
            for damaged, reason in problems:
                logger.warning("checkpoint %s cannot be read (%s): going on from %s", damaged, reason, path.name)
            return state
        damaged, reason = problems[0]
        raise CheckpointError(f"checkpoint {damaged} cannot be read: it is damaged{advice}") from reason


class BestWeights:
    """Saves a network's weights whenever the validation is better than ever before.

    Attach it to the evaluator, and give it to ``TrainingCheckpoint`` as well, so that a restart remembers the best.
    Of several processes the first writes.

    Args:
        path: where the state dict goes.
        network: the network to save.
        metric: name of a metric of the evaluator, smaller is better.
        fresh_from: epoch from which earlier weights no longer count, however good: the adversarial phase makes
            images sharper and the reconstruction loss larger.
        info: describes the weights when they are saved; written beside them as JSON.
    """

    def __init__(
        self,
        path: str | Path,
        network: nn.Module,
        metric: str = "val_loss",
        fresh_from: int | None = None,
        info: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        self.path, self.network, self.metric, self.fresh_from = Path(path), network, metric, fresh_from
        self.best, self.epoch, self.info = float("inf"), 0, info

    def attach(self, engine: Engine) -> None:
        """Look at the metric whenever the evaluator is done."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save if the metric is the best so far."""
        metrics = {name: float(value) for name, value in engine.state.metrics.items()}
        outdated = self.fresh_from is not None and self.epoch < self.fresh_from <= engine.state.epoch
        better = metrics[self.metric] < (float("inf") if outdated else self.best)
        values = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        logger.info("validation %d: %s%s", engine.state.epoch, values, " (best)" if better else "")
        if better:
            self.best, self.epoch = metrics[self.metric], engine.state.epoch
            if idist.get_rank() == 0:
                save_weights(self.network, self.path)
                if self.info is not None:
                    write_model_info(self.path, self.info())

    def state_dict(self) -> dict[str, Any]:
        """Give the best value and its epoch."""
        return {"best": self.best, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave, unless the weights are gone."""
        if self.path.is_file():
            self.best, self.epoch = state["best"], state["epoch"]
