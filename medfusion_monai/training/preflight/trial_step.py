"""Whether a training step fits into memory, and how long all will take: tries one before the training begins."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from medfusion_monai.runtime.errors import is_out_of_memory
from medfusion_monai.runtime.files import in_words
from medfusion_monai.runtime.out_of_memory import release_memory
from medfusion_monai.runtime.values import duration_in_words
from medfusion_monai.training.preflight.machine import available_memory

logger = logging.getLogger(__name__)

FEW = 4  # images measured on a CPU, where a step that is too large would be killed by the system


class Trial(NamedTuple):
    """Memory and time of a step.

    Attributes:
        needed: bytes, including networks and optimizers.
        fits: the largest batch that fits, at most the wanted one.
        seconds: of a step.
    """

    needed: float
    fits: int
    seconds: float = 0.0


def check_memory(trainers: Sequence[Any]) -> str:
    """Try a step of each phase and return its memory and the time of all its steps, in words.

    Phases that resume are skipped, as their steps have fitted before. The trial uses copies of the networks and leaves
    random states unchanged. On CUDA it runs the whole step, on a CPU it extrapolates from a few images.

    Args:
        trainers: of the phases.

    Raises:
        ValueError: stating what a step needs, what is free, and the largest batch that fits.
    """
    fresh = [trainer for trainer in trainers if not trainer.is_begun]
    if not fresh:
        return "not tried, the run resumes"
    device = torch.device(fresh[0].state.device)
    words, problems = [], []
    with torch.random.fork_rng([device] if device.type == "cuda" else []), _quiet():
        free = available_memory(device)
        if device.type == "cpu":
            free += psutil.Process().memory_info().rss  # which the peak of a step includes
        for trainer in fresh:
            try:
                trial = try_step(trainer, free)
            except ValueError as error:  # of a step that measures by itself what would fit
                problems.append(f"{trainer.phase}_batch_size: {error}")
                continue
            finally:
                release_memory()
            if trial is not None and trial.fits < trainer.batch_size:
                problems.append(_refusal(trainer.phase, trainer.batch_size, trial, free, device))
            elif trial is not None:
                words.append(f"{trainer.phase} {in_words(trial.needed)}, {_time_of(trainer, trial.seconds)}")
    if problems:
        raise ValueError("; ".join(problems))
    if not words:
        return f"memory of {device} cannot be measured on this system"
    found = f"{'; '.join(words)}; {in_words(free)} free on {device}"
    logger.info("trial step: %s", found)
    return found


def _time_of(trainer: Any, seconds: float) -> str:
    """Return about how long the steps of a phase take; validations and pictures come on top."""
    steps = trainer.state.max_epochs * trainer.state.epoch_length
    return f"about {duration_in_words(steps * seconds)} for {steps} steps"


def _refusal(phase: str, batch_size: int, trial: Trial, free: float, device: torch.device) -> str:
    if not trial.fits:
        advice = "not even one image fits: choose smaller networks"
    elif phase in ("diffusion", "tuning"):
        advice = f"--micro_batch_size {trial.fits} would fit, with the same results"
    else:
        advice = f"--{phase}_batch_size {trial.fits} would fit"
    return (
        f"{phase}_batch_size {batch_size}: a step needs {in_words(trial.needed)}, {device} has {in_words(free)} free; "
        f"{advice}, or free memory held by other programs"
    )


def try_step(trainer: Any, free: float) -> Trial | None:
    """Measure the memory of a step of one phase; None if this system does not report it.

    Args:
        trainer: of the phase, with ``twin``, ``noise``, ``batch_size`` and ``at_once``.
        free: bytes available.
    """
    twin, device = trainer.twin(), torch.device(trainer.state.device)
    seconds: dict[int, float] = {}

    def step(images: int) -> None:
        batch = trainer.noise(images)
        start = time.perf_counter()
        twin.state.batch = batch
        twin.state.output = twin._process_function(twin, batch)
        twin.state.output = twin.state.batch = None
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds[images] = time.perf_counter() - start  # the last of several, without warm-up

    on_cuda = device.type == "cuda"
    trial: Trial | None = (
        _on_cuda(step, trainer.batch_size, device, free)
        if on_cuda
        else _on_cpu(step, trainer.batch_size, trainer.at_once, free)
    )
    return trial and trial._replace(seconds=_extrapolated(seconds, trainer.batch_size))


def _extrapolated(seconds: dict[int, float], batch_size: int) -> float:
    """Return the time of a step of a whole batch from the times of steps of some sizes."""
    least, most = min(seconds), max(seconds)
    each = max(0.0, seconds[most] - seconds[least]) / max(1, most - least)
    return seconds[most] + each * (batch_size - most)


def _on_cuda(step: Callable[[int], None], batch_size: int, device: torch.device, free: float) -> Trial:
    before = torch.cuda.memory_allocated(device)

    def peak(images: int) -> int | None:
        release_memory()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            step(images)
            step(images)  # the first one creates the optimizer's state
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None
        return torch.cuda.max_memory_allocated(device)

    needed = peak(batch_size)
    if needed is not None:
        return Trial(needed, batch_size)
    one, two = peak(1), peak(2)
    if one is None or two is None:
        return Trial(free, 0 if one is None else 1)
    each = max(1, two - one)
    fits = min(batch_size - 1, int((free + before - one) // each) + 1)
    while fits > 2 and peak(fits) is None:
        fits = fits * 3 // 4
    return Trial(one + (batch_size - 1) * each, fits)


def _on_cpu(step: Callable[[int], None], batch_size: int, at_once: int, free: float) -> Trial | None:
    few = min(FEW, at_once)
    step(1)
    peaks = []
    for images in (1, few):
        if not _reset_peak():
            return None
        step(images)
        peaks.append(_peak())
    each = max(0.0, (peaks[1] - peaks[0]) / max(1, few - 1))
    needed = peaks[1] + each * (at_once - few)
    if needed <= free:
        return Trial(needed, batch_size)
    fits = max(0, int((free - peaks[0]) / each) + 1) if each and peaks[0] <= free else 0
    return Trial(needed, min(fits, batch_size - 1))


def _reset_peak() -> bool:
    """Reset the peak memory of this process, which psutil does not read; False if the system does not report it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux
        return False
    return _peak() > 0


def _peak() -> int:
    """Return the most bytes this process has held since ``_reset_peak``, or 0 if unknown."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the networks' log lines from appearing a second time when copies are built."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)
