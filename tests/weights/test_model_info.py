"""The file beside weights that says what they were trained with."""

import json
import logging

import pytest
from torch import nn

from medfusion_monai.networks import WeightsError
from medfusion_monai.weights.model_info import (
    METADATA_KEY,
    check_model_info,
    model_info_path,
    read_class_shares,
    read_model_info,
    write_model_info,
)
from medfusion_monai.weights.state_dict import save_safetensors

INFO = {
    "class_names": ["gesund", "größer"],
    "class_shares": [0.75, 0.25],
    "image_size": [256, 256],
    "prediction_type": "epsilon",
    "alphas_cumprod": [0.998, 0.123457, 1.2e-05],
}


@pytest.fixture
def weights(tmp_path):
    write_model_info(tmp_path / "models" / "model.pt", INFO)
    return tmp_path / "models" / "model.pt"


def test_file_lies_beside_the_weights_and_comes_back(weights):
    assert model_info_path(weights).name == "model.json"
    assert [path.name for path in weights.parent.iterdir()] == ["model.json"]
    assert read_model_info(weights) == INFO


def test_same_settings_pass_whether_lists_or_tuples(weights, caplog):
    expected = {name: tuple(value) if isinstance(value, list) else value for name, value in INFO.items()}
    check_model_info(weights, expected)
    assert not caplog.records


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "class_names",
            ["größer", "gesund"],
            r"class_names \['gesund', 'größer'\], this run has \['größer', 'gesund'\]",
        ),
        ("prediction_type", "sample", "prediction_type epsilon, this run has sample"),
        ("alphas_cumprod", [0.998, 0.2, 1.2e-05], r"alphas_cumprod .*0\.123457.* this run has .*0\.2"),
    ],
)
def test_difference_is_refused_with_key_both_values_and_what_to_do(weights, key, value, message):
    with pytest.raises(WeightsError, match=rf"model\.pt were trained with {message}.*model\.json.*give the values"):
        check_model_info(weights, INFO | {key: value})


def test_all_differences_are_told_at_once(weights):
    with pytest.raises(WeightsError, match=r"class_names .*; prediction_type"):
        check_model_info(weights, {"class_names": ["a"], "prediction_type": "sample"})


def test_another_image_size_is_warned_of_only(weights, caplog):
    check_model_info(weights, INFO | {"image_size": [512, 384]})
    assert "trained with image_size [256, 256], this run has [512, 384]" in caplog.text


def test_weights_without_the_file_pass_and_the_log_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    check_model_info(tmp_path / "model.pt", INFO)
    assert "model.json" in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.INFO]


def test_key_that_the_file_does_not_know_passes(weights):
    check_model_info(weights, {"latent_channels": 8})


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_damaged_file_is_named(weights, content):
    model_info_path(weights).write_text(content)
    with pytest.raises(WeightsError, match=r"model\.json (cannot be read|holds no JSON object).*delete it"):
        check_model_info(weights, INFO)


def test_failed_write_leaves_the_file_before(weights):
    with pytest.raises(TypeError):
        write_model_info(weights, {"class_names": object()})
    assert read_model_info(weights) == INFO
    assert [path.name for path in weights.parent.iterdir()] == ["model.json"]


def test_shares_are_found_by_the_names_of_the_classes(weights):
    assert read_class_shares(weights, ["größer", "gesund"]) == [0.25, 0.75]


@pytest.mark.parametrize("info", [None, {}, {"class_names": ["gesund"]}, {**INFO, "class_names": ["a", "b"]}])
def test_shares_that_are_not_known_are_asked_for(tmp_path, info):
    if info is not None:
        model_info_path(tmp_path / "model.pt").write_text(json.dumps(info))
    with pytest.raises(
        WeightsError, match=r"needs the shares of \['gesund'\].*model\.json.*--class_shares '\[0\.97, 0\.03\]'"
    ):
        read_class_shares(tmp_path / "model.pt", ["gesund"])


@pytest.fixture
def described(tmp_path):
    """Safetensors whose header says what they were trained with, and nothing beside them."""
    path = tmp_path / "model.safetensors"
    save_safetensors(nn.Linear(1, 1), path, {METADATA_KEY: json.dumps(INFO)})
    return path


def test_header_of_safetensors_says_what_no_file_beside_them_does(described):
    assert read_model_info(described) == INFO
    with pytest.raises(WeightsError, match=r"model\.safetensors were trained with prediction_type epsilon.*give the"):
        check_model_info(described, {"prediction_type": "sample"})


def test_file_beside_safetensors_goes_before_their_header(described):
    write_model_info(described, INFO | {"prediction_type": "sample"})
    check_model_info(described, {"prediction_type": "sample"})


def test_safetensors_without_such_a_text_are_not_compared(tmp_path):
    save_safetensors(nn.Linear(1, 1), tmp_path / "model.safetensors")
    assert read_model_info(tmp_path / "model.safetensors") is None


def test_damaged_text_of_a_header_is_named(tmp_path):
    save_safetensors(nn.Linear(1, 1), tmp_path / "model.safetensors", {METADATA_KEY: "[1]"})
    with pytest.raises(WeightsError, match=r"model\.safetensors holds no JSON object"):
        read_model_info(tmp_path / "model.safetensors")
