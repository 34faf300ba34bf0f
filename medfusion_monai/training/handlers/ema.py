"""The exponential moving average (EMA) of the weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn


class AveragedWeights:
    """Keeps an exponential moving average of a network's weights, with a decay that rises during training.

    Use it in the trainer of the diffusion model: ``module`` is the network to validate, to sample from and to
    save. The decay at update n is 1 - n ** -power, at most ``max_decay``, as in the published code's utilities, which
    its runs did not use. At the first two updates it is 0, which discards the initial weights.

    Args:
        network: the network being trained.
        power: how fast the decay rises; 2/3 suits long training.
        max_decay: highest decay.
    """

    def __init__(self, network: nn.Module, power: float = 2.0 / 3.0, max_decay: float = 0.9999) -> None:
        self.network = network
        self.module = copy.deepcopy(network).eval().requires_grad_(False)
        self.power, self.max_decay = power, max_decay
        self.num_updates = 0

    def attach(self, engine: Engine) -> None:
        """Update after every iteration of a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Update the average."""
        self.update()

    def decay(self) -> float:
        """Return the decay of the next update."""
        step = self.num_updates - 1
        return 0.0 if step <= 0 else min(self.max_decay, 1.0 - (1.0 + step) ** -self.power)

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network and copy its buffers."""
        averaged: list[Tensor] = list(self.module.parameters())
        current: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(averaged, current, 1.0 - self.decay())
        for buffer, source in zip(self.module.buffers(), self.network.buffers(), strict=True):
            buffer.copy_(source)
        self.num_updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the number of updates."""
        return {"module": self.module.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state."""
        self.module.load_state_dict(state["module"])
        self.num_updates = state["num_updates"]
