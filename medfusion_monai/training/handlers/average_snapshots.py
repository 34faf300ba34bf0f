"""Averages of the weights over two lengths, stored during training to rebuild any length afterwards."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from medfusion_monai.weights.power_average import LENGTHS, power_decay, snapshot_files
from medfusion_monai.weights.state_dict import save_atomically


def kept_steps(steps: list[int], count: int, interval: int) -> list[int]:
    """Return the steps of at most ``count`` snapshots: the last one, and multiples of the smallest interval that fits.

    That is the given interval times a power of two, so that snapshots stay evenly spread as a training goes on.

    Args:
        steps: of all snapshots, ascending.
        count: at least 2.
        interval: between snapshots as they are written.
    """
    last = steps[-1]
    while -(-last // interval) > count:
        interval *= 2
    return [step for step in steps if step % interval == 0 or step == last]


class AverageSnapshots:
    """Keeps a power average of a network's weights for each of ``LENGTHS``, and stores both at the ends of epochs.

    Attach it before the checkpoint, whose ``objects`` it belongs to; ``rebuild_average`` reads the snapshots. They are
    in half precision, in ``folder``, together with the autoencoder and the description of the model. The rest of the
    training does not depend on it. Of several processes the first writes.

    Args:
        network: the network being trained.
        folder: of the snapshots.
        count: the most snapshots to keep, at least 2.
        autoencoder: stored as well, in its own precision.
        info: returns the description of the model.
    """

    def __init__(
        self,
        network: nn.Module,
        folder: str | Path,
        count: int,
        autoencoder: nn.Module,
        info: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.network, self.autoencoder, self.info = network, autoencoder, info
        self.folder, self.count = Path(folder), count
        self.modules = {length: copy.deepcopy(network).eval().requires_grad_(False) for length in LENGTHS}
        self.num_updates = 0

    def attach(self, engine: Engine) -> None:
        """Update after every iteration of a trainer, and store at the end of its epochs."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the network and copy its buffers."""
        self.num_updates += 1
        if self.num_updates == 1 and idist.get_rank() == 0:  # an earlier run may have left its own
            for path in snapshot_files(self.folder).values():
                path.unlink()
        current: list[Tensor] = list(self.network.parameters())
        for length, module in self.modules.items():
            averaged: list[Tensor] = list(module.parameters())
            torch._foreach_lerp_(averaged, current, 1.0 - power_decay(length, self.num_updates))
            for buffer, source in zip(module.buffers(), self.network.buffers(), strict=True):
                buffer.copy_(source)

    def __call__(self, engine: Engine) -> None:
        """Store both averages; delete snapshots that are no longer needed, or of steps that are being repeated."""
        if idist.get_rank() > 0:
            return
        save_atomically(self._snapshot(), self.folder / f"{self.num_updates}.pt")
        files = snapshot_files(self.folder)
        done = [step for step in files if step <= self.num_updates]
        kept = kept_steps(done, self.count, engine.state.epoch_length or 1)
        for step, path in files.items():
            if step not in kept:
                path.unlink()

    def _snapshot(self) -> dict[str, Any]:
        return {
            "step": self.num_updates,
            "info": json.dumps(dict(self.info())),
            "averages": {length: _in_half(module) for length, module in self.modules.items()},
            "autoencoder": {name: value.detach().cpu() for name, value in self.autoencoder.state_dict().items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and the number of updates."""
        averages = {str(length): module.state_dict() for length, module in self.modules.items()}
        return {"averages": averages, "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state."""
        for length, module in self.modules.items():
            module.load_state_dict(state["averages"][str(length)])
        self.num_updates = state["num_updates"]


def _in_half(module: nn.Module) -> dict[str, Tensor]:
    """Return a state dict with weights in half precision; buffers, which are not averaged, stay as they are."""
    weights = {name for name, _ in module.named_parameters()}
    state = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    return {name: value.half() if name in weights else value for name, value in state.items()}
