"""AdamW with moments of 8 bits, for weights in any memory format; importing it needs the package bitsandbytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from bitsandbytes.functional import optimizer_update_8bit_blockwise
from bitsandbytes.optim import AdamW8bit
from torch import Tensor

BLOCK = 256
"""Values that share a scale, as bitsandbytes stores them."""

AT_ONCE = 2**19
"""Values updated at a time: their float32 copies stay in a CPU's cache."""


class EightBitAdamW(AdamW8bit):
    """AdamW of bitsandbytes, with the same results, less memory in a step, and weights that keep their memory format.

    A step of bitsandbytes copies each tensor several times in float32, half a GiB for the largest of the published
    UNet, which would then be the peak of the training; here it goes slice by slice. It also leaves all weights
    contiguous: a network in channels_last would lose its format at the first step, compute more slowly, and after a
    restart, which begins in channels_last again, end with other bits. Moments are stored contiguous, as their scales
    belong to blocks of values in that order, and fit a network in either format. Arguments are those of
    ``bitsandbytes.optim.AdamW8bit``.
    """

    def get_state_buffer(self, p: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the zeros that a moment of a weight tensor begins with."""
        return torch.zeros(p.shape, dtype=dtype, device=p.device)

    @torch.no_grad()
    def update_step(self, group: dict[str, Any], p: Tensor, gindex: int, pindex: int) -> None:
        """Update a weight tensor from its gradient; called by ``step``."""
        state = self.state[p]
        if state["state1"].dtype is not torch.uint8:
            self._update_whole(group, p, gindex, pindex)
            return
        state["step"] += 1
        beta1, beta2 = group["betas"]
        for rows, blocks in _slices(p):
            weights, gradient = p[rows], p.grad[rows]  # type: ignore[index]
            updated = weights.contiguous()
            optimizer_update_8bit_blockwise(
                "adam",
                gradient.contiguous(),
                updated,
                state["state1"][rows],
                state["state2"][rows],
                beta1,
                beta2,
                beta3=0.0,
                alpha=0.0,
                eps=group["eps"],
                step=state["step"],
                lr=group["lr"],
                qmap1=state["qmap1"],
                qmap2=state["qmap2"],
                absmax1=state["absmax1"][blocks],
                absmax2=state["absmax2"][blocks],
                weight_decay=group["weight_decay"],
            )
            if updated.data_ptr() != weights.data_ptr():
                weights.copy_(updated)

    def _update_whole(self, group: dict[str, Any], p: Tensor, gindex: int, pindex: int) -> None:
        weights = p.data
        super().update_step(group, p, gindex, pindex)
        if p.stride() != weights.stride():
            p.data = weights.copy_(p.data)


def _slices(p: Tensor) -> Iterator[tuple[slice, slice]]:
    """Return slices of the rows of a tensor that are whole blocks, except in the last one, and of their blocks."""
    row = p[0].numel()
    whole = BLOCK // math.gcd(BLOCK, row)
    rows = whole * max(1, AT_ONCE // (whole * row))
    for start in range(0, len(p), rows):
        yield slice(start, start + rows), slice(start * row // BLOCK, -(-(start + rows) * row // BLOCK))
