"""Learning rates over training."""

from __future__ import annotations

import math
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_decay(
    optimizer: Optimizer,
    warmup_steps: int,
    total_steps: int,
    decay: Literal["constant", "linear", "cosine"] = "constant",
    final_fraction: float = 0.0,
) -> LambdaLR:
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
    if decay not in ("constant", "linear", "cosine"):
        raise ValueError(f"decay must be 'constant', 'linear' or 'cosine', received {decay!r}")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if decay == "constant":
            return 1.0
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        left = 1.0 - progress if decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
        return final_fraction + (1.0 - final_fraction) * left

    return LambdaLR(optimizer, factor)
