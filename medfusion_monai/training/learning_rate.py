"""Learning rates over training."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


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

    return WarmupDecay(optimizer, factor)


class WarmupDecay(LambdaLR):
    """A ``LambdaLR`` whose restart keeps where it was and takes the learning rate of the present run."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step; load the optimizer before."""
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        for group, rate, factor in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["initial_lr"], group["lr"] = rate, rate * factor(self.last_epoch)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
