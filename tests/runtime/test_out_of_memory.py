import pytest

from medfusion_monai.runtime import out_of_memory as memory
from medfusion_monai.runtime.out_of_memory import largest_that_fits


@pytest.mark.parametrize(("most", "expected"), [(100, 12), (12, 12), (11, 6), (3, 3), (2, 1), (1, 1), (0, 0)])
def test_number_is_halved_until_it_fits(most, expected, monkeypatch):
    monkeypatch.setattr(memory, "release_memory", lambda: None)  # slow with the many objects of the tests

    def attempt(count):
        if count > most:
            raise MemoryError

    assert largest_that_fits(attempt, 25) == expected


def test_error_of_another_kind_ends_the_search():
    def attempt(count):
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        largest_that_fits(attempt, 8)
