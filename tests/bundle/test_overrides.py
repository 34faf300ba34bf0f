"""Command-line values and the bundle's folder under MONAI's runner."""

import gc
import re

import pytest
from monai.bundle import ConfigWorkflow, run

from medfusion_monai.bundle import root as bundle
from medfusion_monai.runtime.errors import first_cause

CONFIG = """
imports: [$import medfusion_monai, $import medfusion_monai.bundle]
diffusion_steps: 3
resume: true
start: 4
train: {trainer: {max_epochs: 2, resume: '@resume', start: '@start'}}
steps: []
class_names: [a, b]
output_dir: $'/computed#' + 'here'
other_samples: {}
initialize: [$medfusion_monai.bundle.accept_overrides()]
training: [$@steps.append(@diffusion_steps), $@seen.append(@train#trainer)]
seen: []
"""


@pytest.fixture
def run_config(tmp_path):
    (tmp_path / "train.yaml").write_text(CONFIG)
    return lambda **overrides: run(run_id="training", config_file=str(tmp_path / "train.yaml"), **overrides)


@pytest.mark.parametrize(
    "overrides",
    [{}, {"diffusion_steps": 5}, {"train#trainer#max_epochs": 3}, {"train::trainer::new": 1}, {"+steps": [1]}],
)
def test_keys_of_the_config_may_be_overridden(overrides, run_config):
    run_config(**overrides)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"difusion_steps": 5}, r"--difusion_steps \(near: diffusion_steps\): not a key of this config"),
        ({"totally_unknown": 5, "stepz": 1}, r"--totally_unknown, --stepz \(near: steps"),
    ],
)
def test_mistyped_key_is_refused_with_its_nearest(overrides, words, run_config):
    with pytest.raises(RuntimeError) as caught:
        run_config(**overrides)
    assert re.match(words, str(first_cause(caught.value)))


def test_mistyped_key_in_a_file_of_arguments_is_refused(run_config, tmp_path):
    (tmp_path / "arguments.json").write_text('{"difusion_steps": 5}')
    with pytest.raises(RuntimeError) as caught:
        run_config(args_file=str(tmp_path / "arguments.json"))
    assert "near: diffusion_steps" in str(first_cause(caught.value))


def workflow_of(folder, **overrides):
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    (folder / "configs" / "train.yaml").write_text(f"bundle_root: $medfusion_monai.bundle.find_root()\n{CONFIG}")
    return ConfigWorkflow(str(folder / "configs" / "train.yaml"), workflow_type="train", **overrides)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("false", False), ("False", False), ("true", True), ("null", None), ("Null", None), ("truely", "truely"), (3, 3)],
)
def test_values_of_the_command_line_are_read_as_yaml(given, expected, tmp_path):
    workflow = workflow_of(tmp_path, resume=given, **{"train#trainer#start": given})
    workflow.initialize()
    assert workflow.parser.get_parsed_content("train#trainer#resume") is expected or expected == given
    assert workflow.parser.get_parsed_content("resume") == expected
    assert workflow.parser.get_parsed_content("train#trainer#start") == expected


def test_root_is_that_of_the_workflow_that_is_initialized(tmp_path):
    workflows = [workflow_of(tmp_path / name) for name in "ab"]
    for workflow, name in zip(reversed(workflows), "ba", strict=True):
        workflow.initialize()
        assert workflow.bundle_root == str(tmp_path / name)
    workflows[0].initialize()
    assert workflows[0].bundle_root == str(tmp_path / "a")


def test_workflow_that_was_refused_is_not_taken_for_a_later_one(tmp_path):
    refused = workflow_of(tmp_path / "a", difusion_steps=1)
    with pytest.raises(RuntimeError) as caught:
        refused.initialize()
    assert "difusion_steps" in str(first_cause(caught.value))
    later = workflow_of(tmp_path / "b")
    later.initialize()
    assert later.bundle_root == str(tmp_path / "b")


def test_without_a_workflow_the_root_is_the_working_directory():
    gc.collect()
    assert bundle.find_root() == "."


def test_what_lies_beside_a_bundle_is_not_in_it(tmp_path):
    assert bundle.beside(str(tmp_path / "medfusion_cxr"), "runs") == str(tmp_path / "runs" / "medfusion_cxr")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"class_names": ["a", "b#c"]}, "class_names contains .*MONAI's configs turn into '::'"),
        ({"class_names": ["a", ""]}, "class_names must be a list"),
        ({"output_dir": "/data/run#1"}, "output_dir '/data/run.*1' contains '#'"),
        ({"output_dir": "~/runs"}, "output_dir '~/runs' begins with '~'"),
        ({"output_dir": ""}, "output_dir must be a path, received ''"),
        ({"other_samples": {"gan": "~/gan"}}, "other_samples gan '~/gan' begins"),
    ],
)
def test_names_and_paths_that_would_become_others_are_refused(overrides, words, run_config):
    with pytest.raises(RuntimeError) as caught:
        run_config(**overrides)
    assert re.match(words, str(first_cause(caught.value)))
