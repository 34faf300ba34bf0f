"""Names and paths that would silently become others are refused."""

from pathlib import Path

import pytest

from medfusion_monai.runtime.values import check_class_names, check_config_paths, check_paths


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
