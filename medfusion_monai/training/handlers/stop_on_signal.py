"""Saving a checkpoint and ending when a scheduler, a closed terminal or Ctrl-C asks for it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch.utils.data import DataLoader

from medfusion_monai.runtime.distributed import gather, report_failure
from medfusion_monai.training.handlers.checkpoint import TrainingCheckpoint

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: nothing is wrong, start the same command again later."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""Those that end a program by default; SIGUSR1 is the warning of a scheduler before it ends a job."""
GPU_STEPS = 10  # between agreements: each waits for the GPU

Handler = Callable[[int, FrameType | None], Any] | int | None


class StoppedBySignal(SystemExit):
    """Ends the program with exit code 75: it was asked to stop, lost nothing, and the same command resumes it."""

    def __init__(self, sentence: str) -> None:
        super().__init__(EXIT_CODE)
        self.sentence = sentence

    def __str__(self) -> str:
        """Return what happened."""
        return self.sentence


def leave_on_signals() -> None:
    """Have the signals end this program at once with exit code 75, except while ``StopOnSignal`` listens.

    For work before and between trainings, which is written as a whole or not at all and can be repeated: checking
    data, measuring and caching latents. It has no effect outside the main thread, nor on a signal that is ignored, as
    ``nohup`` ignores SIGHUP.
    """
    own = os.getpid()

    def leave(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:
            _act_by_default(number)
            return
        _ignore_lost_workers()
        _stop(number, "between trainings; the same command resumes from what is finished")

    _install(leave)


class StopOnSignal:
    """Saves a checkpoint and ends the program with exit code 75 on SIGTERM, SIGUSR1, SIGHUP or SIGINT.

    Use it where a scheduler may end the job: it sends one of these some time before it kills. The current step, or
    the current batch of a validation, is finished first; a restart repeats an unfinished validation. Attach it after
    all other handlers, so that the checkpoint includes their work on the step, and train within ``listening``. Signals
    that arrive during the save change nothing.

    Several processes stop after the same step, whichever of them receives the signal: on CPUs they agree at every
    step, on GPUs every ten, because each agreement waits for the GPU. Workers of data loaders continue, as schedulers
    often signal them as well.

    Args:
        checkpoint: the training's.
        evaluator: the engine that validates, to stop there as well.
    """

    def __init__(self, checkpoint: TrainingCheckpoint, evaluator: Engine | None = None) -> None:
        self.checkpoint, self.evaluator = checkpoint, evaluator
        self.received = 0
        self._engine: Engine | None = None
        self._common_batches = 0

    def attach(self, engine: Engine) -> None:
        """Check for a signal after each step of a trainer and each batch of its evaluator."""
        self._engine = engine
        engine.add_event_handler(Events.STARTED, _protect_workers)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.after_epoch)
        engine.logger.addFilter(_is_no_stop)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.STARTED, self.before_validation)
            self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self.in_validation)
            self.evaluator.logger.addFilter(_is_no_stop)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within this block record signals instead of acting on them; then restore the previous handlers.

        Outside the main thread it records none.
        """
        own, self.received = os.getpid(), 0

        def record(number: int, frame: FrameType | None) -> None:
            if os.getpid() == own:
                self.received = number
            else:
                _act_by_default(number)

        previous = _install(record)
        try:
            yield
        except StoppedBySignal:
            raise  # on the way out, where a further signal has nothing to add
        except BaseException:
            _restore(previous)
            raise
        else:
            _restore(previous)

    def __call__(self, engine: Engine) -> None:
        """After a step: save and leave if any process has received a signal."""
        every = 1 if idist.get_world_size() == 1 or idist.device().type == "cpu" else GPU_STEPS
        number = self._agreed() if engine.state.iteration % every == 0 else 0
        if number:
            self.checkpoint.save(engine, epoch_completed=False)
            self._leave(engine, number)

    def after_epoch(self, engine: Engine) -> None:
        """After the other handlers of an epoch, its checkpoint included: leave if a signal has arrived."""
        number = self._agreed()
        if number:
            if self.checkpoint.saved != (engine.state.iteration, True):
                self.checkpoint.save(engine, epoch_completed=True)
            self._leave(engine, number)

    def before_validation(self, evaluator: Engine) -> None:
        """Find the number of batches that all processes have: some may have one more, without the others."""
        _protect_workers(evaluator)
        self._common_batches = min(gather(evaluator.state.epoch_length or 0))

    def in_validation(self, evaluator: Engine) -> None:
        """After a batch of a validation: save the training, leave the validation to the restart, and stop."""
        engine = self._engine
        if engine is None or evaluator.state.iteration > self._common_batches:
            return
        number = self._agreed()
        if number:
            self.checkpoint.save(engine, epoch_completed=False)
            self._leave(engine, number)

    def _agreed(self) -> int:
        if idist.get_world_size() == 1:
            return self.received
        number: Any = idist.all_reduce(self.received, op="MAX")
        return int(number)

    def _leave(self, engine: Engine, number: int) -> None:
        gather(None)  # no process leaves before the first has saved: torchrun ends the others when one is gone
        _ignore_lost_workers()
        place = f"after step {engine.state.iteration}: {self.checkpoint.path.name} holds everything"
        command = "the same command" if self.checkpoint.resume else "this command without --resume false"
        _stop(number, f"{place}, and {command} resumes from there")


def _install(handler: Callable[[int, FrameType | None], None]) -> dict[int, Handler]:
    """Set the handler of all signals that are not ignored and return the previous ones."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


def _restore(previous: dict[int, Handler]) -> None:
    for number, handler in previous.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _stop(number: int, sentence: str) -> None:
    sentence = f"stopped by {signal.Signals(number).name} {sentence} (exit code {EXIT_CODE})"
    for later in SIGNALS:  # one that arrives on the way out has nothing to add
        signal.signal(later, _do_nothing)
    if idist.get_rank() == 0:
        print(f"\nmedfusion: {sentence}", file=sys.stderr, flush=True)
    stopped = StoppedBySignal(sentence)
    report_failure(stopped)  # torchrun itself ends with 1; with this it can write the exit code into a file
    raise stopped


def _is_no_stop(record: logging.LogRecord) -> bool:
    """Keep engines from logging a stop that was asked for as an error."""
    return not isinstance(sys.exc_info()[1], StoppedBySignal)


def _act_by_default(number: int) -> None:
    """Do in a forked process, which inherits handlers, what it would do without; a warning does not concern it."""
    if number in ENDING:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _ignore_lost_workers() -> None:
    """Let workers end unnoticed; PyTorch would raise an error wherever this process is on its way out."""
    signal.signal(signal.SIGCHLD, _do_nothing)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    pass


def _protect_workers(engine: Engine) -> None:
    loader = engine.state.dataloader
    if isinstance(loader, DataLoader) and loader.num_workers and not isinstance(loader.worker_init_fn, _ObeyParent):
        loader.worker_init_fn = _ObeyParent(loader.worker_init_fn)


class _ObeyParent:
    """Makes a data loader's worker obey signals from its parent only.

    A scheduler signals all processes of a job, and a terminal all of its foreground group. A worker that ended at
    once would take the training with it, at a moment when there is nothing complete to save.
    """

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self.then = then

    def __call__(self, worker_id: int) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()
        if self.then is not None:
            self.then(worker_id)


def _obey(parent: int) -> None:
    while True:
        info = signal.sigwaitinfo(SIGNALS)
        if info.si_signo == signal.SIGTERM and info.si_pid == parent:
            os._exit(0)
