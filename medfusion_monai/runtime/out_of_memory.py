"""Batches that are too large for the memory, and the largest that fits."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from medfusion_monai.runtime.errors import is_out_of_memory


class BatchTooLargeError(ValueError):
    """A step needs more memory than is available."""


def largest_that_fits(attempt: Callable[[int], object], too_many: int) -> int:
    """Halve a number of images until an attempt with it succeeds.

    Args:
        attempt: does the work with this number of images; raises an error of ``is_out_of_memory`` if they do not fit.
        too_many: a number that does not fit.

    Returns:
        The number that succeeded, or 0 if even one image does not fit.
    """
    count = too_many // 2
    while count and not _passes(attempt, count):
        count //= 2
    release_memory()
    return count


def release_memory() -> None:
    """Release unreferenced memory."""
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
