"""Batches that are too large for the memory, and how large they may be."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from medfusion_monai.errors import MEMORY


class BatchTooLargeError(ValueError):
    """A step needs more memory than there is."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up, of a GPU or of the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in MEMORY)


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
    free_memory()
    return count


def free_memory() -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _passes(attempt: Callable[[int], object], count: int) -> bool:
    free_memory()
    try:
        attempt(count)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
