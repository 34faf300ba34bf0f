"""What the configs call, without a config."""

import json
import re

import pytest
import torch
from monai.bundle import run
from torch import nn

from medfusion_monai.bundle import check_settings, load_model, model_settings
from medfusion_monai.diffusion import NoiseSchedule
from medfusion_monai.errors import first_cause
from medfusion_monai.networks import WeightsError
from medfusion_monai.weights.model_info import write_model_info
from medfusion_monai.weights.state_dict import save_weights


def settings(**schedule):
    return model_settings(("a", "b"), (64, 64), 1, 8, NoiseSchedule(**schedule))


def test_settings_of_a_model_are_the_same_after_a_way_through_json():
    assert json.loads(json.dumps(settings())) == settings()


@pytest.mark.parametrize(
    ("schedule", "key"),
    [
        ({"prediction_type": "v_prediction"}, "prediction_type"),
        ({"num_train_timesteps": 500}, "num_train_timesteps"),
        ({"schedule": "linear"}, "alphas_cumprod"),
        ({"schedule": "cosine"}, "alphas_cumprod"),
        ({"beta_end": 0.012}, "alphas_cumprod"),
    ],
)
def test_settings_of_a_model_tell_schedules_apart(schedule, key):
    assert settings()[key] != settings(**schedule)[key]


def test_model_of_the_same_settings_is_loaded_for_evaluation(tmp_path):
    save_weights(nn.Linear(2, 2), tmp_path / "model.pt")
    write_model_info(tmp_path / "model.pt", settings())
    network = load_model(nn.Linear(2, 2), tmp_path / "model.pt", **settings())
    assert torch.equal(network.weight, torch.load(tmp_path / "model.pt", weights_only=True)["weight"])
    assert not network.training


def test_model_of_other_settings_is_refused_unless_nothing_is_expected(tmp_path):
    save_weights(nn.Linear(2, 2), tmp_path / "model.pt")
    write_model_info(tmp_path / "model.pt", settings())
    with pytest.raises(WeightsError, match="prediction_type epsilon, this run has sample"):
        load_model(nn.Linear(2, 2), tmp_path / "model.pt", **settings(prediction_type="sample"))
    load_model(nn.Linear(2, 2), tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_shares": "even"}, "class_shares must be equal"),
        ({"class_shares": [1.0]}, "received 1 shares"),
        ({"unreadable": "pass"}, "unreadable must be"),
    ],
)
def test_bad_setting_is_refused(arguments, message):
    check_settings(1, ["a", "b"], class_shares="equal", unreadable="skip")
    with pytest.raises(ValueError, match=message):
        check_settings(1, ["a", "b"], **arguments)


CONFIG = """
imports: [$import medfusion_monai, $import medfusion_monai.bundle]
diffusion_steps: 3
train: {trainer: {max_epochs: 2}}
steps: []
initialize: [$medfusion_monai.bundle.check_overrides()]
training: [$@steps.append(@diffusion_steps)]
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
        ({"difusion_steps": 5}, r"--difusion_steps \(near: diffusion_steps\): no key of train.yaml"),
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
