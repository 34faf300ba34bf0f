"""Values, names and paths that are out of range or would silently become others are refused."""

from pathlib import Path

import pytest

from medfusion_monai.runtime.values import (
    check_class_names,
    check_config_paths,
    check_numbers,
    check_paths,
    duration_in_words,
)


def test_usual_class_names_and_paths_are_accepted():
    check_class_names(["no_cardiomegaly", "Größe > 2 cm", "T1@3T", "50%"])
    check_config_paths(output_dir="runs/~old", model_dir=Path("/a b"), ckpt_dir=None)
    check_paths(root="/study #3")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (None, "list of different names"),
        ("ab", "list of different names"),
        ([], "list of different names"),
        (["a", "a"], "list of different names"),
        (["a", " "], "none empty"),
        (["a", 1], r"received \['a', 1\]"),
        (["a", None], "list of different names"),
        (["a", "b#c"], r"contains \['b#c'\].*'#'"),
        (["a", "b::c"], r"contains \['b::c'\].*'::'"),
        (["$a", "@b", "%c", "d"], r"contains \['\$a', '@b', '%c'\].*begin with"),
    ],
)
def test_class_names_that_configs_alter_are_refused(names, words):
    with pytest.raises(ValueError, match=words):
        check_class_names(names)


@pytest.mark.parametrize("path", ["", " ", "~", "~/data", Path("~/data"), 5, ["a"]])
def test_path_that_is_empty_or_begins_with_a_tilde_is_refused(path):
    with pytest.raises(ValueError, match="^root .*(must be a path|begins with '~'.*Write the path in full)"):
        check_paths(root=path)


@pytest.mark.parametrize("path", ["/data/a#b", "/data/a::b", Path("a#b"), "~/a", ""])
def test_path_that_configs_alter_is_refused(path):
    with pytest.raises(ValueError, match="^output_dir "):
        check_config_paths(output_dir=path)


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
