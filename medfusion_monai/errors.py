"""What an error says, below the wrappers that libraries put around it."""

from __future__ import annotations

WRAPPERS = ("Failed to ", "applying transform ")  # of MONAI's config parser and of its transforms


def first_cause(error: BaseException) -> BaseException:
    """Give the error inside MONAI's wrappers ('Failed to evaluate', 'Failed to instantiate', 'applying transform')."""
    while error.__cause__ is not None and str(error).startswith(WRAPPERS):
        error = error.__cause__
    return error


def short_message(error: BaseException) -> str:
    """Give an error's message; of one in a data loader's worker, without the worker's traceback."""
    message = str(error).strip()
    if message.startswith("Caught ") and "DataLoader worker process" in message:
        return message.splitlines()[-1].partition(": ")[2]  # the line names the kind of error first
    return message
