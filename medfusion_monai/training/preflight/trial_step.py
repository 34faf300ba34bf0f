"""Whether a step fits into memory: one is tried, with networks of its own, before the training begins."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from medfusion_monai.runtime.errors import is_out_of_memory
from medfusion_monai.runtime.files import in_words
from medfusion_monai.runtime.out_of_memory import release_memory
from medfusion_monai.training.preflight.machine import available_memory

logger = logging.getLogger(__name__)

FEW = 4  # images whose memory is measured on a CPU, where too large a step would not fail but be killed


class Trial(NamedTuple):
    """Memory of a step.

    Attributes:
        phase: what its keys begin with.
        batch_size: images of a step.
        needed: bytes, those of networks and optimizers included.
        fits: the most images that a step can have.
    """

    phase: str
    batch_size: int
    needed: float
    fits: int


def check_memory(trainers: Sequence[Any]) -> str:
    """Try a step of each phase that does not go on from a checkpoint, which has shown that its steps fit.

    Args:
        trainers: of the phases.

    Raises:
        ValueError: saying what a step needs, what is free, and the largest batch that would fit.
    """
    fresh = [trainer for trainer in trainers if not trainer.is_begun]
    if not fresh:
        return "a run that goes on: not tried"
    words = try_steps(fresh)
    logger.info("trial step: %s", words)
    return words


def try_steps(trainers: Sequence[Any]) -> str:
    """Try a step of each phase with other networks than the run's own, whose random numbers stay as they are.

    On CUDA the whole step is made. On a CPU it is measured on few images and extrapolated.

    Args:
        trainers: of the phases.

    Raises:
        ValueError: for the phases whose steps do not fit.
    """
    device = torch.device(trainers[0].state.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), _quiet():
        free = available_memory(device) + (resident() if device.type == "cpu" else 0)
        words, problems = _try_phases(trainers, device, free)
    if problems:
        raise ValueError("; ".join(problems))
    if not words:
        return f"memory of {device} cannot be measured on this system"
    return f"{', '.join(words)}, of {in_words(free)} that {device} has free"


def _try_phases(trainers: Sequence[Any], device: torch.device, free: float) -> tuple[list[str], list[str]]:
    """Return what each phase needs, and what is wrong with those that do not fit."""
    words: list[str] = []
    problems: list[str] = []
    for trainer in trainers:
        try:
            trial = try_step(trainer, free)
        except ValueError as error:  # a step that measures by itself what would fit
            problems.append(f"{trainer.phase}_batch_size: {error}")
            continue
        finally:
            release_memory()
        if trial is not None and trial.fits < trial.batch_size:
            problems.append(_refusal(trial, free, device))
        elif trial is not None:
            words.append(f"{trial.phase} {in_words(trial.needed)}")
    return words, problems


def _refusal(trial: Trial, free: float, device: torch.device) -> str:
    key = f"{trial.phase}_batch_size"
    if not trial.fits:
        advice = "not even one image fits: choose smaller networks"
    elif trial.phase == "diffusion":
        advice = f"--micro_batch_size {trial.fits} would fit, with the same results"
    else:
        advice = f"--{key} {trial.fits} would fit"
    return (
        f"{key} {trial.batch_size}: a step needs {in_words(trial.needed)}, {device} has {in_words(free)} free; "
        f"{advice}, or free memory that other programs hold"
    )


def try_step(trainer: Any, free: float) -> Trial | None:
    """Measure the memory of a step of one phase; None where this system does not tell it.

    Args:
        trainer: of the phase, which has ``twin``, ``noise``, ``batch_size`` and ``at_once``.
        free: bytes that there are.
    """
    twin, device = trainer.twin(), torch.device(trainer.state.device)

    def step(images: int) -> None:
        twin.state.batch = trainer.noise(images)
        twin.state.output = twin._process_function(twin, twin.state.batch)
        twin.state.output = twin.state.batch = None

    if device.type == "cuda":
        return _on_cuda(step, trainer.phase, trainer.batch_size, device, free)
    return _on_cpu(step, trainer.phase, trainer.batch_size, trainer.at_once, free)


def _on_cuda(step: Callable[[int], None], phase: str, batch_size: int, device: torch.device, free: float) -> Trial:
    before = torch.cuda.memory_allocated(device)

    def peak(images: int) -> int | None:
        release_memory()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            step(images)
            step(images)  # the optimizer has its values from the first on
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None
        return torch.cuda.max_memory_allocated(device)

    needed = peak(batch_size)
    if needed is not None:
        return Trial(phase, batch_size, needed, batch_size)
    one, two = peak(1), peak(2)
    if one is None or two is None:
        return Trial(phase, batch_size, free, 0 if one is None else 1)
    each = max(1, two - one)
    fits = min(batch_size - 1, int((free + before - one) // each) + 1)
    while fits > 2 and peak(fits) is None:
        fits = fits * 3 // 4
    return Trial(phase, batch_size, one + (batch_size - 1) * each, fits)


def _on_cpu(step: Callable[[int], None], phase: str, batch_size: int, at_once: int, free: float) -> Trial | None:
    few = min(FEW, at_once)
    step(1)
    peaks = []
    for images in (1, few):
        if not _forget_peak():
            return None
        step(images)
        peaks.append(_peak())
    each = max(0.0, (peaks[1] - peaks[0]) / max(1, few - 1))
    needed = peaks[1] + each * (at_once - few)
    if needed <= free:
        return Trial(phase, batch_size, needed, batch_size)
    fits = max(0, int((free - peaks[0]) / each) + 1) if each and peaks[0] <= free else 0
    return Trial(phase, batch_size, needed, min(fits, batch_size - 1))


def resident() -> int:
    """Return the bytes of memory that this process has."""
    return psutil.Process().memory_info().rss


def _forget_peak() -> bool:
    """Measure the peak from now on; False where the system does not report it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # no Linux
        return False
    return _peak() > 0


def _peak() -> int:
    """Return the most memory that this process had since ``_forget_peak``, which psutil does not know; 0 if unknown."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what networks say when they are built from being said twice."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)
