import pytest

from medfusion_monai.runtime.values import check_numbers, duration_in_words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (89, "89 s"), (91, "2 min"), (7200, "2 h"), (172800, "2 days"), (1e6, "12 days")],
)
def test_duration_has_the_unit_that_suits_it(seconds, words):
    assert duration_in_words(seconds) == words


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, "1", None, True])
def test_value_that_is_not_a_finite_number_in_range_is_refused(value):
    with pytest.raises(ValueError, match="rate must be a finite number of at least 0, received"):
        check_numbers(rate=value)


def test_bound_itself_is_refused_where_values_lie_above_it():
    check_numbers(rate=0.0)
    check_numbers(above=True, rate=1.0e-9)
    with pytest.raises(ValueError, match="rate must be a finite number above 0, received 0"):
        check_numbers(above=True, rate=0)
