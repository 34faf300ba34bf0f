import errno
import os
import signal
from multiprocessing.connection import Client, Listener

import pytest
import torch
from monai.transforms import Compose
from torch.utils.data import DataLoader

from medfusion_monai.data.datalist import DataError
from medfusion_monai.runtime.errors import first_cause, is_out_of_memory, short_message
from medfusion_monai.runtime.files import DiskFullError


class Failing:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise DataError(f"/data/{index}.png: is empty. Fetch it again.")


def test_error_of_a_transform_is_found_below_monai_s_wrappers():
    def fail(item):
        raise DataError("a.png: is empty")

    with pytest.raises(RuntimeError) as caught:
        Compose([fail])({})
    assert str(first_cause(caught.value)) == "a.png: is empty"


def test_error_that_is_wrapped_for_a_reason_is_not_unwrapped():
    error = DataError("a.png: cannot be opened: disk")
    error.__cause__ = OSError("disk")
    assert first_cause(error) is error


def test_error_of_a_worker_is_shown_without_its_traceback():
    with pytest.raises(DataError) as caught:
        next(iter(DataLoader(Failing(), num_workers=1)))
    assert "Traceback" in str(caught.value)
    assert short_message(caught.value) == "/data/0.png: is empty. Fetch it again."


def test_message_of_several_lines_stays_whole():
    assert short_message(DataError("2 images:\n  a.png\n  b.png")) == "2 images:\n  a.png\n  b.png"


MEMORY_ERRORS = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("could not create a primitive"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_folder_that_became_read_only_is_told_with_what_to_do(number):
    message = short_message(OSError(number, os.strerror(number), "runs/x.png"))
    assert os.strerror(number) in message
    assert "runs/x.png" in message
    assert "the same command continues" in message
    assert short_message(DiskFullError(errno.ENOSPC, "no disk space for x")) == "no disk space for x"


@pytest.mark.parametrize("error", MEMORY_ERRORS, ids=lambda error: type(error).__name__)
def test_lack_of_memory_is_told_with_what_to_do(error):
    message = short_message(error)
    assert message.startswith("not enough memory (")
    assert (str(error) or "MemoryError") in message
    assert "lower the batch size" in message


@pytest.mark.parametrize("error", [ValueError("out of memory"), OSError(errno.EIO, "I/O"), RuntimeError("memory")])
def test_other_errors_keep_their_words(error):
    assert short_message(error) == str(error)


def test_full_disk_is_told_with_what_to_do_unless_the_error_says_so():
    assert short_message(OSError(errno.ENOSPC, "No space left on device")).startswith("the disk is full ([Errno 28]")
    assert short_message(DiskFullError(errno.ENOSPC, "no disk space for a.pt")) == "no disk space for a.pt"


class Killed(Failing):
    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_worker_that_is_killed_is_told_with_what_to_do():
    with pytest.raises(RuntimeError) as caught:
        list(DataLoader(Killed(), num_workers=1))
    message = short_message(caught.value)
    assert message.startswith("a data loading worker ended unexpectedly (DataLoader worker (pid")
    assert "lower num_workers" in message


def test_worker_that_breaks_off_while_it_hands_over_is_told():
    with Listener() as listener:
        Client(listener.address).close()
        connection = listener.accept()
        with pytest.raises(EOFError) as caught:
            connection.recv()
    assert short_message(caught.value).startswith("a data loading worker ended unexpectedly (EOFError)")


def test_connection_that_is_none_of_a_worker_is_not_taken_for_one():
    assert short_message(ConnectionResetError(104, "Connection reset by peer")).startswith("[Errno 104]")


def test_memory_that_the_cpu_refuses_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
