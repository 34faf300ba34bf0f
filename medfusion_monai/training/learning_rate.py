"""Optimizers with learning rate schedules."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from medfusion_monai.baselines.relativistic import check_ramp, ramp
from medfusion_monai.runtime.values import check_bool, check_counts, check_numbers


@dataclass(frozen=True)
class Adam:
    """Settings of an optimizer and its learning rate schedule, before the weights are known.

    Args:
        lr: the highest learning rate.
        warmup_steps: steps until it is reached.
        decay: of the learning rate afterwards: ``constant`` (published), ``linear`` or ``cosine``.
        later_lr: learning rate of a later part of the training, instead of the schedule; None for none.
        later_from: number of steps before that part; None for never.

    Raises:
        ValueError: for an unknown decay, or a number out of range.
    """

    lr: float = 1.0e-4
    warmup_steps: int = 500
    decay: Literal["constant", "linear", "cosine"] = "constant"
    later_lr: float | None = None
    later_from: int | None = None

    kind: ClassVar[type[Optimizer]] = torch.optim.Adam

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_decay(self.decay)
        check_numbers(lr=self.lr)
        check_counts(0, warmup_steps=self.warmup_steps)
        if self.later_lr is not None:
            check_numbers(later_lr=self.later_lr)

    def build(self, parameters: Iterable[nn.Parameter], total_steps: int) -> tuple[Optimizer, WarmupDecay]:
        """Return the optimizer of the parameters and its learning rate schedule over ``total_steps``."""
        optimizer = self._optimizer(parameters)
        later = None if self.later_from is None or self.later_lr is None else (self.later_from, self.later_lr)
        return optimizer, warmup_decay(optimizer, self.warmup_steps, total_steps, self.decay, later=later)

    def _optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        return self.kind(parameters, lr=self.lr, fused=True)  # type: ignore[call-arg]


@dataclass(frozen=True)
class AdamW(Adam):
    """``Adam`` with decoupled weight decay (Loshchilov and Hutter 2019).

    Args:
        eight_bit_moments: whether both moments are stored in 8 bits per value, in blocks with a scale each (Dettmers et
            al. 2022), by the package bitsandbytes: 2 bytes per weight in place of 8. Tensors with fewer than 4,096
            values keep float32.

    Raises:
        ValueError: as ``Adam``; also for moments of 8 bits without bitsandbytes.
    """

    eight_bit_moments: bool = False

    kind: ClassVar[type[Optimizer]] = torch.optim.AdamW

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        super().__post_init__()
        check_bool(eight_bit_moments=self.eight_bit_moments)
        if self.eight_bit_moments and find_spec("bitsandbytes") is None:
            raise ValueError(
                "eight_bit_moments: true needs the package bitsandbytes, which is not installed: "
                "pip install bitsandbytes, or set it to false"
            )

    def _optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        if not self.eight_bit_moments:
            return super()._optimizer(parameters)
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of parts that optimizers do not need
        return import_module("medfusion_monai.training.eight_bit_adamw").EightBitAdamW(parameters, lr=self.lr)


@dataclass(frozen=True)
class GanAdam:
    """Settings of the optimizer of a GAN: Adam without momentum, whose rates move along a ramp.

    Args:
        lr: the learning rate at the beginning, and from the end of the ramp on.
        beta2: share of the old average of squared gradients, likewise.
        ramp_steps: steps of the ramp, which is half a cosine; the weight of the penalties and the probability of the
            augmentation follow it too.

    Raises:
        ValueError: for a number out of range.
    """

    lr: Sequence[float] = (2.0e-4, 5.0e-5)
    beta2: Sequence[float] = (0.9, 0.99)
    ramp_steps: int = 1

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_ramp(gan_lr=self.lr)
        check_ramp(most=0.999999, gan_beta2=self.beta2)
        check_counts(gan_ramp_steps=self.ramp_steps)
        if not self.lr[0]:
            raise ValueError(f"gan_lr must begin above 0, received {list(self.lr)}")

    def build(self, parameters: Iterable[nn.Parameter], total_steps: int) -> tuple[Optimizer, WarmupDecay]:
        """Return the optimizer of the parameters and its learning rate schedule; ``total_steps`` are not needed."""
        optimizer = torch.optim.Adam(parameters, lr=self.lr[0], betas=(0.0, self.beta2[0]), fused=True)
        return optimizer, WarmupDecay(optimizer, lambda step: ramp(self.lr, self.progress(step)) / self.lr[0])

    def progress(self, step: int) -> float:
        """Return how far the ramp is at a step, from 0 to 1."""
        return min(1.0, step / self.ramp_steps)

    def set_beta2(self, optimizer: Optimizer, progress: float) -> None:
        """Set the share of the old average in an optimizer."""
        for group in optimizer.param_groups:
            group["betas"] = (0.0, ramp(self.beta2, progress))


def check_decay(decay: str) -> None:
    """Raise a ValueError for an unknown decay."""
    if decay not in ("constant", "linear", "cosine"):
        raise ValueError(f"decay must be 'constant', 'linear' or 'cosine', received {decay!r}")


def warmup_decay(
    optimizer: Optimizer,
    warmup_steps: int,
    total_steps: int,
    decay: Literal["constant", "linear", "cosine"] = "constant",
    final_fraction: float = 0.0,
    later: tuple[int, float] | None = None,
) -> WarmupDecay:
    """Raise the learning rate linearly over the first steps, then keep it or lower it until the last.

    Args:
        optimizer: its learning rate is the highest.
        warmup_steps: steps until it is reached.
        total_steps: steps of the whole training.
        decay: of the learning rate after the warm-up; published: constant.
        final_fraction: share of the learning rate at the last step.
        later: a number of steps, and the learning rate after them.

    Raises:
        ValueError: for an unknown decay.
    """
    check_decay(decay)
    highest = optimizer.param_groups[0]["lr"]

    def factor(step: int) -> float:
        if later is not None and step >= later[0]:
            return later[1] / highest if highest else 0.0
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if decay == "constant":
            return 1.0
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        left = 1.0 - progress if decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
        return final_fraction + (1.0 - final_fraction) * left

    return WarmupDecay(optimizer, factor)


class WarmupDecay(LambdaLR):
    """A ``LambdaLR`` that resumes at its step, with the learning rate of the current run."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step; load the optimizer first."""
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        for group, rate, factor in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["initial_lr"], group["lr"] = rate, rate * factor(self.last_epoch)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
