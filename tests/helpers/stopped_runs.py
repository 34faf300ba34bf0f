"""Trainings that are stopped within an epoch, and comparing their end with that of one that never was."""

import os
import signal

import pytest
import torch
from monai.handlers import LrScheduleHandler
from states import assert_same

from medfusion_monai.runtime.locks import leave_folders
from medfusion_monai.training.handlers.stop_on_signal import StoppedBySignal

CHANGED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD)
"""Signals whose handlers a training replaces."""


def stop_by_signal(monkeypatch, number, train):
    """Run a training and send SIGTERM during a step, after which it must leave."""
    before = {each: signal.getsignal(each) for each in CHANGED}
    _on_step(monkeypatch, number, lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(StoppedBySignal):
            train()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def lose(monkeypatch, number, train):
    """Run a training and end it during a step, as if its process had died."""

    def die():
        raise KeyboardInterrupt

    _on_step(monkeypatch, number, die)
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        train()
    leave_folders()
    monkeypatch.undo()


def iteration_of(folder, phase):
    """Return the step of a phase's checkpoint."""
    return torch.load(folder / f"runs/checkpoints/{phase}_training.pt", weights_only=True)["iteration"]


def assert_same_end(stopped, whole, phase, as_states=("model.pt",)):
    """Compare checkpoints, weights and pictures, bit for bit.

    Args:
        stopped: a folder with ``models`` and ``runs``.
        whole: likewise.
        phase: whose checkpoint is compared, with the state of its optimizer.
        as_states: files in ``models`` of which the tensors are compared, not the bytes.
    """
    for name in (f"runs/checkpoints/{phase}_training.pt", *(f"models/{name}" for name in as_states)):
        assert_same(*(torch.load(folder / name, weights_only=True) for folder in (stopped, whole)), name)
    for folder in ("runs/pictures", "models"):
        files = [{path.name: path.read_bytes() for path in (place / folder).iterdir()} for place in (stopped, whole)]
        assert files[0].keys() == files[1].keys()
        assert all(files[0][name] == files[1][name] for name in files[0] if name not in as_states)


def _on_step(monkeypatch, number, act):
    """Call ``act`` once, during a step."""
    count, step = 0, LrScheduleHandler.__call__

    def counted(handler, engine):
        nonlocal count
        count += 1
        if count == number:
            act()
        step(handler, engine)

    monkeypatch.setattr(LrScheduleHandler, "__call__", counted)
