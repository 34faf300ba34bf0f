import pytest

from medfusion_monai.runtime.values import duration_in_words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (89, "89 s"), (91, "2 min"), (7200, "2 h"), (172800, "2 days"), (1e6, "12 days")],
)
def test_duration_has_the_unit_that_suits_it(seconds, words):
    assert duration_in_words(seconds) == words
