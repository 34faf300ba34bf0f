"""Leaving in good order when a scheduler asks for it, by SIGTERM or SIGUSR1."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch.utils.data import DataLoader

from medfusion_monai.runtime.distributed import gather
from medfusion_monai.training.handlers.checkpoint import TrainingCheckpoint

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: nothing is wrong, start the same command again later."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
GPU_STEPS = 10  # between agreements: each waits for the GPU

Handler = Callable[[int, FrameType | None], Any] | int | None


class StoppedBySignal(SystemExit):
    """Ends the program with exit code 75: it was asked to stop, lost nothing, and the same command goes on."""

    def __init__(self, sentence: str) -> None:
        super().__init__(EXIT_CODE)
        self.sentence = sentence

    def __str__(self) -> str:
        """Say what happened; engines log this."""
        return self.sentence


def leave_on_signals() -> None:
    """Have SIGTERM and SIGUSR1 end this program at once with exit code 75, until ``StopOnSignal`` takes over.

    For what comes before and between trainings, which is written whole or not at all and done again: checking data,
    measuring and keeping latents. Outside the main thread this has no effect.
    """
    own = os.getpid()

    def leave(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:
            _as_if_not_listening(number)
            return
        _ignore_lost_workers()
        _stop(number, "between trainings; the same command goes on from what is finished")

    _install(leave)


class StopOnSignal:
    """Saves a checkpoint and ends the program with exit code 75 when SIGTERM or SIGUSR1 comes.

    Use it where a scheduler may end the job: it sends one of these some time before it kills. The present step, or
    the present batch of a validation, is finished first; a restart does an unfinished validation again. Attach it
    after everything else, so that what it saves includes the step's other handlers. Signals that come while it saves
    change nothing. Outside the main thread it does not listen.

    Several processes stop after the same step, whichever of them the signal reaches: on GPUs they agree every ten
    steps, as each time waits for the GPU, on CPUs at every step. Workers of the data loaders go on, as schedulers
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
        self._previous: dict[int, Handler] = {}
        self._own = 0

    def attach(self, engine: Engine) -> None:
        """Listen while a trainer runs."""
        engine.add_event_handler(Events.STARTED, self.listen)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.after_epoch)
        for event in (Events.TERMINATE, Events.COMPLETED):
            engine.add_event_handler(event, self.stop_listening)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.after_error)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.STARTED, self.before_validation)
            self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self.in_validation)

    def listen(self, engine: Engine) -> None:
        """Note signals from now on instead of acting on them at once."""
        self.received, self._engine, self._own = 0, engine, os.getpid()
        self._previous = _install(self._note)
        _protect_workers(engine.state.dataloader)

    def stop_listening(self, engine: Engine) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def after_error(self, engine: Engine, error: BaseException) -> None:
        """Give the signals back when an error ends the training; the error goes on."""
        self.stop_listening(engine)
        raise error

    def __call__(self, engine: Engine) -> None:
        """After a step: save and leave if a signal has come to any process."""
        every = 1 if idist.get_world_size() == 1 or idist.device().type == "cpu" else GPU_STEPS
        number = self._agreed() if engine.state.iteration % every == 0 else 0
        if number:
            self.checkpoint.save(engine, epoch_completed=False)
            self._leave(engine, number)

    def after_epoch(self, engine: Engine) -> None:
        """After the handlers of an epoch, its checkpoint among them: leave if a signal has come."""
        number = self._agreed()
        if number:
            if self.checkpoint.saved != (engine.state.iteration, True):
                self.checkpoint.save(engine, epoch_completed=True)
            self._leave(engine, number)

    def before_validation(self, evaluator: Engine) -> None:
        """Learn how many batches all processes have: some may have one more, at which the others do not meet."""
        _protect_workers(evaluator.state.dataloader)
        self._common_batches = min(gather(evaluator.state.epoch_length or 0))

    def in_validation(self, evaluator: Engine) -> None:
        """After a batch of a validation: save what was trained, the validation to be done again, and leave."""
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
        self.stop_listening(engine)
        _ignore_lost_workers()
        place = f"after step {engine.state.iteration}: {self.checkpoint.path.name} holds everything"
        command = "the same command" if self.checkpoint.resume else "this command without --resume false"
        _stop(number, f"{place}, and {command} goes on from there")

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._own:
            _as_if_not_listening(number)
        else:
            self.received = number


def _install(handler: Callable[[int, FrameType | None], None]) -> dict[int, Handler]:
    """Set the handler of all our signals and give those that were there."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    previous = {number: signal.signal(number, handler) for number in SIGNALS}
    return {number: signal.SIG_DFL if handler is None else handler for number, handler in previous.items()}


def _stop(number: int, sentence: str) -> None:
    sentence = f"stopped by {signal.Signals(number).name} {sentence} (exit code {EXIT_CODE})"
    for later in SIGNALS:  # one that comes on the way out has nothing to add
        signal.signal(later, signal.SIG_IGN)
    if idist.get_rank() == 0:
        print(f"\nmedfusion: {sentence}", file=sys.stderr, flush=True)
    raise StoppedBySignal(sentence)


def _as_if_not_listening(number: int) -> None:
    """Do in a forked process, which inherits handlers, what it would do without; a warning does not concern it."""
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _ignore_lost_workers() -> None:
    """Have workers end unnoticed; PyTorch would raise an error wherever this process is on its way out."""
    signal.signal(signal.SIGCHLD, lambda *_: None)


def _protect_workers(loader: Any) -> None:
    if isinstance(loader, DataLoader) and loader.num_workers and not isinstance(loader.worker_init_fn, _GoOn):
        loader.worker_init_fn = _GoOn(loader.worker_init_fn)


class _GoOn:
    """Has a data loader's worker obey signals of its parent only.

    A scheduler signals all processes of a job. A worker that ends at once would take the training with it, at a
    moment when there is nothing whole to save.
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
