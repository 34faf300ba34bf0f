"""A progress bar over the whole training."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor
from tqdm import tqdm


class ProgressBar:
    """Shows images per second, time left and the mean loss since the last update.

    Attach it to a trainer. If the output is not a terminal, it updates every 30 seconds instead of every second.

    Args:
        description: shown in front.
        batch_size: images per iteration, over all processes.
    """

    def __init__(self, description: str, batch_size: int) -> None:
        self.description, self.batch_size = description, batch_size
        self.bar: tqdm | None = None
        self.losses: list[Tensor] = []
        self.shown = 0.0
        self.interval = 1.0 if sys.stderr.isatty() else 30.0

    def attach(self, engine: Engine) -> None:
        """Follow the iterations of a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        for event in (Events.COMPLETED, Events.EXCEPTION_RAISED, Events.TERMINATE):
            engine.add_event_handler(event, self.close)

    def __call__(self, engine: Any) -> None:
        """Advance by one iteration."""
        if self.bar is None:
            self.bar = self._open(engine)
        self.losses.append(engine.state.output[0][Keys.LOSS].detach())
        if time.monotonic() - self.shown >= self.interval:
            mean = float(torch.stack(self.losses).mean())  # one read, which waits for a GPU
            self.bar.set_postfix_str(f"loss {mean:.4f}, step {engine.state.iteration}", refresh=False)
            self.losses.clear()
            self.shown = time.monotonic()
        self.bar.update(self.batch_size)

    def close(self, engine: Engine, *args: object) -> None:
        """Close the bar; re-raise an exception."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        if args and isinstance(args[0], BaseException):
            raise args[0]

    def _open(self, engine: Engine) -> tqdm:
        total = (engine.state.max_epochs or 0) * (engine.state.epoch_length or 0) * self.batch_size
        done = (engine.state.iteration - 1) * self.batch_size
        return tqdm(
            total=total,
            initial=done,
            desc=self.description,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            mininterval=self.interval,
            file=sys.stderr,
        )
