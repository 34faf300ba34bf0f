"""Random numbers that belong to a sample, not to a batch: the same in any batch size, order or process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """Mix numbers and words into one seed of 63 bits; different parts give unrelated seeds."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generators(seeds: Iterable[int]) -> list[torch.Generator]:
    """Make one generator a sample, on the CPU, so that every device sees the same numbers."""
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def randn(shape: Sequence[int], sources: Sequence[torch.Generator], device: torch.device | str = "cpu") -> Tensor:
    """Draw standard normal values (len(sources), *shape), each sample from its own generator."""
    return torch.stack([torch.randn(*shape, generator=source) for source in sources]).to(device, non_blocking=True)
