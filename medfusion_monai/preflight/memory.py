"""Whether a step fits into memory: one is tried, with networks of its own, before the training begins."""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from medfusion_monai.errors import first_cause
from medfusion_monai.memory import is_out_of_memory
from medfusion_monai.preflight.checks import running_parser
from medfusion_monai.preflight.machine import free_memory, gib, status_bytes

logger = logging.getLogger(__name__)

PHASES = {"autoencoder_training": "autoencoder", "train": "diffusion"}
"""Parts of the config that have a ``trainer`` and a ``sampler``, and what their keys begin with."""

FEW = 4  # images whose memory is measured on a CPU, where too large a step would not fail but be killed


@dataclass(frozen=True)
class Trial:
    """Memory of a step.

    Args:
        phase: what its keys begin with.
        batch_size: images of a step.
        needed: bytes, those of networks and optimizers included.
        fits: the most images that a step can have.
    """

    phase: str
    batch_size: int
    needed: float
    fits: int


def check_memory(resume: bool = True, ckpt_dir: str | Path | None = None) -> str:
    """Try a step of each phase of the config that is being run; for its ``checks``.

    A phase that goes on from a checkpoint in ``ckpt_dir`` has shown that its steps fit, and is not tried.

    Args:
        resume: whether the run goes on from a checkpoint that is there.
        ckpt_dir: folder of the checkpoints.

    Raises:
        ValueError: saying what a step needs, what is free, and the largest batch that would fit.
    """
    folder = Path(ckpt_dir) if resume and ckpt_dir is not None else None
    begun = [phase for phase in PHASES.values() if folder is not None and (folder / f"{phase}_training.pt").is_file()]
    if len(begun) == len(PHASES):
        return "a run that goes on: not tried"
    words = try_steps(running_parser(), begun)
    logger.info("trial step: %s", words)
    return words


def try_steps(parser: ConfigParser, begun: Collection[str] = ()) -> str:
    """Try a step of each phase with other networks than the config's own, whose random numbers stay as they are.

    On CUDA the whole step is made. On a CPU it is measured on few images and extrapolated.

    Args:
        parser: of the config.
        begun: phases that are not tried.

    Raises:
        ValueError: for the phases whose steps do not fit.
    """
    device = torch.device(parser.get_parsed_content("device"))
    with torch.random.fork_rng([device] if device.type == "cuda" else []), _quiet():
        double = _double(parser, device)
        free = free_memory(device) + (resident() or 0 if device.type == "cpu" else 0)
        words, problems = _try_phases(double, device, free, begun)
    del double
    _release(device)
    if problems:
        raise ValueError("; ".join(problems))
    if not words:
        return f"memory of {device} cannot be measured on this system"
    return f"{', '.join(words)}, of {gib(free)} that {device} has free"


def _try_phases(
    parser: ConfigParser, device: torch.device, free: float, begun: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """Give what each phase needs, and what is wrong with those that do not fit."""
    words: list[str] = []
    problems: list[str] = []
    for part, phase in PHASES.items():
        try:
            trial = try_step(parser, part, phase, device, free) if part in parser and phase not in begun else None
        except ValueError as error:  # a step that measures by itself what would fit
            problems.append(f"{phase}_batch_size: {error}")
            continue
        if trial is not None and trial.fits < trial.batch_size:
            problems.append(_refusal(trial, free, device))
        elif trial is not None:
            words.append(f"{phase} {gib(trial.needed)}")
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
        f"{key} {trial.batch_size}: a step needs {gib(trial.needed)}, {device} has {gib(free)} free; {advice}, or free "
        "memory that other programs hold"
    )


def _double(parser: ConfigParser, device: torch.device) -> ConfigParser:
    """Give a config with the same trainers, without data, handlers and files."""
    double = ConfigParser(copy.deepcopy(parser.get()))
    root = parser.get_parsed_content("bundle_root") if "bundle_root" in parser else "."
    overrides: dict[str, Any] = {"bundle_root": root, "device": str(device), "rank": 0, "world_size": 1}
    overrides |= {"tensorboard": None, "train#trainer#train_handlers": "$[@train#ema]"}
    overrides |= {"autoencoder_training#trainer#train_handlers": []}
    overrides |= {f"{part}#dataloader": [None] for part in PHASES}
    for key, value in overrides.items():
        if key.split("#")[0] in double:
            double[key] = value
    return double


def try_step(parser: ConfigParser, part: str, phase: str, device: torch.device, free: float) -> Trial | None:
    """Measure the memory of a step of one phase; None where this system does not tell it.

    Args:
        parser: of a config whose trainers may be spoilt.
        part: of the config, with ``trainer`` and ``sampler``.
        phase: what its keys begin with.
        device: where it is.
        free: bytes that there are.
    """
    try:
        trainer = parser.get_parsed_content(f"{part}#trainer")
        batch_size = parser.get_parsed_content(f"{part}#sampler").batch_size
    except RuntimeError as error:
        raise first_cause(error) from error
    start = parser.get_parsed_content("adversarial_start") if "adversarial_start" in parser else None
    trainer.state.iteration = (start or 0) + 1  # with the discriminators, which make a step larger

    def step(images: int) -> None:
        trainer.state.batch = _batch(parser, part, images)
        trainer.state.output = trainer._process_function(trainer, trainer.state.batch)
        trainer.state.output = trainer.state.batch = None

    if device.type == "cuda":
        return _on_cuda(step, phase, batch_size, device, free)
    micro_batch = parser.get_parsed_content("micro_batch_size") if "micro_batch_size" in parser else None
    at_once = min(micro_batch or batch_size, batch_size) if phase == "diffusion" else batch_size
    return _on_cpu(step, phase, batch_size, at_once, free)


def _batch(parser: ConfigParser, part: str, images: int) -> dict[str, Any]:
    """Give a batch of noise; of posteriors in phase two, if the config keeps these."""
    channels, size, key = parser.get_parsed_content("image_channels"), parser.get_parsed_content("image_size"), "image"
    if part == "train" and "train#cached" in parser and parser.get_parsed_content("train#cached"):
        factor = parser.get_parsed_content("downsampling")
        channels, size = 2 * parser.get_parsed_content("latent_channels"), [side // factor for side in size]
        key = "moments"
    noise = torch.rand(images, channels, *size)
    return {key: noise, "label": torch.zeros(images, dtype=torch.long), "seed": list(range(images))}


def _on_cuda(step: Callable[[int], None], phase: str, batch_size: int, device: torch.device, free: float) -> Trial:
    before = torch.cuda.memory_allocated(device)

    def peak(images: int) -> int | None:
        gc.collect()
        torch.cuda.empty_cache()
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
        peaks.append(resident(peak=True) or 0)
    each = max(0.0, (peaks[1] - peaks[0]) / max(1, few - 1))
    needed = peaks[1] + each * (at_once - few)
    if needed <= free:
        return Trial(phase, batch_size, needed, batch_size)
    fits = max(0, int((free - peaks[0]) / each) + 1) if each and peaks[0] <= free else 0
    return Trial(phase, batch_size, needed, min(fits, batch_size - 1))


def resident(peak: bool = False) -> int | None:
    """Give the bytes of memory that this process has, or the most that it had; None where the system does not tell."""
    return status_bytes("VmHWM" if peak else "VmRSS")


def _forget_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return resident(peak=True) is not None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what networks say when they are built from being said twice."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
