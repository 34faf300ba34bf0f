"""Optimizers, and learning rates over training."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class Adam:
    """The optimizer of a phase and the way of its learning rate, before there are weights to optimize.

    Args:
        lr: the highest learning rate.
        warmup_steps: steps until it is reached.
        decay: how it falls afterwards: ``constant`` (published), ``linear`` or ``cosine``.

    Raises:
        ValueError: for an unknown decay.
    """

    lr: float = 1.0e-4
    warmup_steps: int = 500
    decay: Literal["constant", "linear", "cosine"] = "constant"

    kind: ClassVar[type[Optimizer]] = torch.optim.Adam

    def __post_init__(self) -> None:
        """Refuse an unknown decay."""
        check_decay(self.decay)

    def build(self, parameters: Iterable[nn.Parameter], total_steps: int) -> tuple[Optimizer, WarmupDecay]:
        """Return the optimizer of these parameters and its learning rates over ``total_steps``."""
        optimizer = self.kind(parameters, lr=self.lr, fused=True)  # type: ignore[call-arg]
        return optimizer, warmup_decay(optimizer, self.warmup_steps, total_steps, self.decay)


class AdamW(Adam):
    """``Adam`` with decoupled weight decay (Loshchilov and Hutter 2019)."""

    kind: ClassVar[type[Optimizer]] = torch.optim.AdamW


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
) -> WarmupDecay:
    """Raise the learning rate linearly over the first steps, then keep it or let it fall until the last.

    Args:
        optimizer: its learning rate is the highest that is reached.
        warmup_steps: steps until then.
        total_steps: steps of the whole training.
        decay: how it falls; published: constant.
        final_fraction: share of the learning rate that is left at the last step.

    Raises:
        ValueError: for an unknown decay.
    """
    check_decay(decay)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if decay == "constant":
            return 1.0
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        left = 1.0 - progress if decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
        return final_fraction + (1.0 - final_fraction) * left

    return WarmupDecay(optimizer, factor)


class WarmupDecay(LambdaLR):
    """A ``LambdaLR`` whose restart keeps where it was and takes the learning rate of the present run."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step; load the optimizer before."""
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        for group, rate, factor in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["initial_lr"], group["lr"] = rate, rate * factor(self.last_epoch)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
