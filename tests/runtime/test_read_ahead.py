import doctest
import threading

import pytest

from medfusion_monai.runtime import read_ahead as module
from medfusion_monai.runtime.read_ahead import read_ahead


def test_example_in_the_docstring_gives_what_it_says():
    result = doctest.testmod(module)
    assert (result.attempted, result.failed) == (1, 0)


def test_next_value_is_read_while_one_is_used_and_only_that():
    read = [threading.Event() for _ in range(4)]
    values = read_ahead(lambda key: read[key].set() or key, range(4))
    assert next(values) == 0
    assert read[1].wait(timeout=30)
    assert not read[2].is_set()
    assert list(values) == [1, 2, 3]


def test_nothing_to_read_gives_nothing():
    assert list(read_ahead(str, [])) == []


def test_error_comes_when_it_is_the_turn_of_its_key():
    def read(key):
        if key == 1:
            raise ValueError("no such image")
        return key

    values = read_ahead(read, range(3))
    assert next(values) == 0
    with pytest.raises(ValueError, match="no such image"):
        next(values)
