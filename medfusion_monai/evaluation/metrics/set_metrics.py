"""Values per image of a set, computed by one process or shared between several, as torchmetrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from tqdm import tqdm

from medfusion_monai.data.reading.images import BAR_FROM
from medfusion_monai.runtime.distributed import together
from medfusion_monai.runtime.read_ahead import read_ahead


class SetValues(Metric):
    """Values of the images of a set, e.g. their features, in the order of the set.

    Each process adds values of its own batches, see ``own_batches``; ``compute`` returns those of all processes.

    Shapes: ``update`` takes (B, ...); ``compute`` returns (N, ...).

    Example:
        >>> metric = SetValues()
        >>> metric.update(torch.tensor([[0.0, 1.0]]))
        >>> metric.update(torch.tensor([[2.0, 3.0], [4.0, 5.0]]))
        >>> metric.compute().shape
        torch.Size([3, 2])
    """

    is_differentiable = False
    full_state_update = False
    values: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(self, values: Tensor) -> None:
        """Add values of the next images."""
        self.values.append(values.to(self.device))

    def compute(self) -> Tensor:
        """Return the values of all images."""
        return dim_zero_cat(self.values)


def own_batches(count: int, batch_size: int) -> list[range]:
    """Return the batches of this process, as ranges of the numbers below ``count``.

    Batches are the same as with one process, so values whose last bits depend on the batch do not depend on the number
    of processes. They follow the order of the ranks; with few batches, some processes have none.
    """
    starts = np.array_split(range(0, count, batch_size), idist.get_world_size())[idist.get_rank()]
    return [range(start, min(start + batch_size, count)) for start in starts.tolist()]


def measure_images(
    measure: Callable[[Any], Tensor],
    count: int,
    batch_size: int,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
    title: str = "",
    bar_from: int = BAR_FROM,
    dtype: torch.dtype = torch.float32,
    read: Callable[[range], Any] | None = None,
) -> Tensor:
    """Measure the images of a set batch by batch, each process its own batches.

    Args:
        measure: maps what was read of a batch, or its indices, to values (B, ...).
        count: images of the set.
        batch_size: images per batch.
        shape: of the values of one image.
        device: where values are collected: a GPU if the processes compute on GPUs.
        title: of the progress bar.
        bar_from: smallest number of images with a progress bar.
        dtype: of the values.
        read: reads a batch from its indices, in a thread, while the one before is measured. None: ``measure`` reads.

    Returns:
        (N, ...), in the order of the set, in every process, on the CPU.

    Raises:
        ValueError: in every process if ``read`` or ``measure`` raised it in one.
    """
    metric = SetValues().to(device)

    def measure_own() -> None:
        metric.update(torch.empty(0, *shape, dtype=dtype))  # also in a process without a batch
        quiet = count < bar_from or idist.get_rank() > 0
        batches: Any = own_batches(count, batch_size)
        total = len(batches)
        if read is not None:
            batches = read_ahead(read, batches)
        for batch in tqdm(batches, title, total, unit="batch", dynamic_ncols=True, disable=quiet):
            metric.update(measure(batch))

    together(measure_own)
    return metric.compute().cpu()
