"""Messages of errors, without the wrappers of libraries, and with advice for errors of the system."""

from __future__ import annotations

import errno
import traceback

from medfusion_monai.runtime.files import DISK_FULL, DiskFullError

WRAPPERS = ("Failed to ", "applying transform ")  # of MONAI's config parser and of its transforms
MEMORY = ("not enough memory", "out of memory", "DefaultCPUAllocator", "could not create a primitive", "bad_alloc")
"""Parts of the messages of PyTorch and oneDNN for lack of memory."""
WORKER_LOST = "DataLoader worker (pid"
WORKER_FILES = ("/multiprocessing/", "/torch/utils/data/")
MEMORY_HINT = (
    "not enough memory ({}): lower the batch size, num_workers or cache_num, or close other programs; the same command "
    "continues from what was saved"
)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
READ_ONLY_HINT = (
    "a file cannot be written or read ({}): restore the permissions of the folder, or choose another one; the same "
    "command continues from what was saved"
)
DISK_HINT = "the disk is full ({}): free some space and run the same command again; existing files are kept"
WORKER_HINT = (
    "a data loading worker ended unexpectedly ({}), often for lack of memory: lower num_workers; the same "
    "command continues from what was saved"
)


def first_cause(error: BaseException) -> BaseException:
    """Return the error below MONAI's wrappers 'Failed to evaluate', 'Failed to instantiate', 'applying transform'."""
    while error.__cause__ is not None and str(error).startswith(WRAPPERS):
        error = error.__cause__
    return error


def short_message(error: BaseException) -> str:
    """Return the message of an error, for data loading workers without the worker's traceback.

    Messages on lack of memory or disk, missing permissions and lost workers get advice on what to do.
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
    """Return whether an error reports the loss of a data loading worker, also while it passed on a batch."""
    if isinstance(error, RuntimeError):
        return str(error).startswith(WORKER_LOST)
    if isinstance(error, ConnectionError | EOFError):
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        return any(part in file for file in files for part in WORKER_FILES)
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports lack of memory, of a GPU or of the host."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in MEMORY)


class WeightsError(ValueError):
    """A weights file that is missing, unreadable or does not fit the network."""
