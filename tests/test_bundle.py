"""What the configs call, without a config."""

import json

import pytest
import torch
from torch import nn

from medfusion_monai.bundle import check_settings, load_model, model_settings
from medfusion_monai.diffusion import NoiseSchedule
from medfusion_monai.networks import WeightsError
from medfusion_monai.networks.model_info import write_model_info
from medfusion_monai.networks.weights import save_weights


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
