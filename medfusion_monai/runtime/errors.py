"""What an error says, below the wrappers that libraries put around it."""

from __future__ import annotations

import errno
import traceback

from medfusion_monai.runtime.files import DISK_FULL, DiskFullError

WRAPPERS = ("Failed to ", "applying transform ")  # of MONAI's config parser and of its transforms
MEMORY = ("not enough memory", "out of memory", "DefaultCPUAllocator", "could not create a primitive", "bad_alloc")
"""What PyTorch and oneDNN say when they get no memory."""
WORKER_LOST = "DataLoader worker (pid"
WORKER_FILES = ("/multiprocessing/", "/torch/utils/data/")
MEMORY_HINT = (
    "there was not enough memory ({}): lower the batch size, num_workers or cache_num, or free what other programs "
    "hold; the same command goes on from what was saved"
)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
READ_ONLY_HINT = (
    "a file cannot be written or read ({}): give the folder back its permission, or name another one; the same command "
    "goes on from what was saved"
)
DISK_HINT = "the disk is full ({}): make room and run the same command again; what was written before is kept"
WORKER_HINT = (
    "a worker that reads data was ended from outside ({}), often for lack of memory: lower num_workers; the same "
    "command goes on from what was saved"
)


def first_cause(error: BaseException) -> BaseException:
    """Return the error inside MONAI's wrappers: 'Failed to evaluate', 'Failed to instantiate', 'applying transform'."""
    while error.__cause__ is not None and str(error).startswith(WRAPPERS):
        error = error.__cause__
    return error


def short_message(error: BaseException) -> str:
    """Return an error's message; of one in a data loader's worker, without the worker's traceback.

    Where the system refuses memory or disk or took a worker away, whose messages tell nobody what to do, they stand in
    a sentence.
    """
    message = str(error).strip()
    if message.startswith("Caught ") and "DataLoader worker process" in message:
        return message.splitlines()[-1].partition(": ")[2]  # the line names the kind of error first
    if is_lost_worker(error):
        return WORKER_HINT.format(message or type(error).__name__)
    if isinstance(error, OSError) and error.errno in DISK_FULL and not isinstance(error, DiskFullError):
        return DISK_HINT.format(message)
    if isinstance(error, OSError) and not isinstance(error, ValueError) and error.errno in READ_ONLY:
        return READ_ONLY_HINT.format(message)
    if is_out_of_memory(error):
        return MEMORY_HINT.format((message or type(error).__name__).splitlines()[0])
    return message


def is_lost_worker(error: BaseException) -> bool:
    """Whether an error says that a worker of a data loader is gone; it may break off while it hands over a batch."""
    if isinstance(error, RuntimeError):
        return str(error).startswith(WORKER_LOST)
    if isinstance(error, ConnectionError | EOFError):
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        return any(part in file for file in files for part in WORKER_FILES)
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up, of a GPU or of the host."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in MEMORY)


class WeightsError(ValueError):
    """A weights file that is missing, unreadable or does not fit the network."""
