"""Batches that are too large for the memory, and how large they may be."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from medfusion_monai.runtime.errors import is_out_of_memory


class BatchTooLargeError(ValueError):
    """A step needs more memory than there is."""


def largest_that_fits(attempt: Callable[[int], object], too_many: int) -> int:
    """Halve a number of images until an attempt with it passes.

    Args:
        attempt: does the work with as many images; raises what ``is_out_of_memory`` knows if they do not fit.
        too_many: a number that does not fit.

    Returns:
        The number that passed; 0 if not even one image does.
    """
    count = too_many // 2
    while count and not _passes(attempt, count):
        count //= 2
    release_memory()
    return count


def release_memory() -> None:
    """Let go of memory that nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _passes(attempt: Callable[[int], object], count: int) -> bool:
    release_memory()
    try:
        attempt(count)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
