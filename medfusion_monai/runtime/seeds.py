"""Random numbers per sample, independent of batch size, order and process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """Return a seed of 63 bits from numbers and words; different parts give unrelated seeds."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generators(seeds: Iterable[int]) -> list[np.random.Generator]:
    """Return one generator per sample, on the CPU, to draw the same numbers for every device.

    They are NumPy's, because PyTorch's CPU generator uses only the low 32 bits of a seed: two of 15,738 images would
    share their noise in three of a hundred runs.
    """
    return [np.random.default_rng(int(seed)) for seed in seeds]


def randn(shape: Sequence[int], sources: Sequence[np.random.Generator], device: torch.device | str = "cpu") -> Tensor:
    """Draw standard normal values (len(sources), *shape), float32, each sample from its own generator."""
    import torch  # tables and splits, which need seeds only, are read without it

    values = np.stack([source.standard_normal(tuple(shape), dtype=np.float32) for source in sources])
    noise = torch.from_numpy(values)
    if torch.device(device).type == "cuda":
        noise = noise.pin_memory()  # a copy of pageable memory would wait for all queued work of the GPU
    return noise.to(device, non_blocking=True)
