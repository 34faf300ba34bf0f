"""Random numbers that belong to a sample, not to a batch: the same in any batch size, order or process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """Mix numbers and words into one seed of 63 bits; different parts give unrelated seeds."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generators(seeds: Iterable[int]) -> list[np.random.Generator]:
    """Make one generator a sample, on the CPU, so that every device sees the same numbers.

    NumPy's, because PyTorch's on the CPU sees only the low 32 bits of a seed: of 15,738 images two would share
    their noise in three runs of a hundred.
    """
    return [np.random.default_rng(int(seed)) for seed in seeds]


def randn(shape: Sequence[int], sources: Sequence[np.random.Generator], device: torch.device | str = "cpu") -> Tensor:
    """Draw standard normal values (len(sources), *shape), float32, each sample from its own generator."""
    values = np.stack([source.standard_normal(tuple(shape), dtype=np.float32) for source in sources])
    noise = torch.from_numpy(values)
    if torch.device(device).type == "cuda":
        noise = noise.pin_memory()  # a copy of other memory would wait for all that the GPU has to do
    return noise.to(device, non_blocking=True)
