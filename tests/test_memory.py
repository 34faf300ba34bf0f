import pytest
import torch

from medfusion_monai import memory
from medfusion_monai.memory import is_out_of_memory, largest_that_fits

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:125] . DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] . not enough memory: you tried to allocate 8 bytes"),
]
OTHER = [RuntimeError("shapes cannot be multiplied"), ValueError("out of memory"), KeyError("x")]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_want_of_memory_is_recognised(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHER)
def test_other_errors_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)


def test_memory_that_the_cpu_refuses_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(("most", "expected"), [(100, 12), (12, 12), (11, 6), (3, 3), (2, 1), (1, 1), (0, 0)])
def test_number_is_halved_until_it_fits(most, expected, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: None)  # slow among all that tests hold

    def attempt(count):
        if count > most:
            raise MemoryError

    assert largest_that_fits(attempt, 25) == expected


def test_error_of_another_kind_ends_the_search():
    def attempt(count):
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        largest_that_fits(attempt, 8)
