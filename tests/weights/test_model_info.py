"""The description of weights."""

import json

import pytest
import torch
from torch import nn

from medfusion_monai.diffusion.inferer import LatentDiffusionSampler
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.networks.autoencoder import Autoencoder
from medfusion_monai.networks.described import DescriptionError, build, describe
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.networks.unet import UNet
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.weights.model_info import (
    METADATA_KEY,
    PLACES,
    describe_model,
    found_at,
    model_info_path,
    read_model_info,
    refuse_contradictions,
    require_model_info,
    write_model_info,
)
from medfusion_monai.weights.state_dict import save_safetensors

CLASSES = ["gesund", "größer"]


def network():
    unet = UNet(4, channels=(8, 8, 16), embedding_channels=16, norm_groups=4, attention=True, num_classes=2)
    return Medfusion(Autoencoder(1, 4, (8, 16)), unet, CLASSES, (32, 48))


def info_of(**schedule):
    schedule = NoiseSchedule(prediction_type="v_prediction", **schedule)
    settings = LatentDiffusionSampler(schedule, num_inference_steps=7, guidance_scale=2.0).settings()
    return describe_model(network(), schedule, settings, {"resize_mode": "pad"}, {"steps": 5}, [0.75, 0.25])


INFO = json.loads(json.dumps(info_of()))


@pytest.fixture
def weights(tmp_path):
    write_model_info(tmp_path / "models" / "model.pt", info_of())
    return tmp_path / "models" / "model.pt"


def test_file_lies_beside_the_weights_and_comes_back(weights):
    assert model_info_path(weights).name == "model.json"
    assert [path.name for path in weights.parent.iterdir()] == ["model.json"]
    assert read_model_info(weights) == INFO


def test_networks_and_schedule_are_built_again_as_they_were():
    parts = {name: build(part) for name, part in INFO["networks"].items()}
    for name, part in network().named_children():
        assert repr(parts[name]) == repr(part)
        shapes = {key: value.shape for key, value in part.state_dict().items()}
        assert {key: value.shape for key, value in parts[name].state_dict().items()} == shapes
    schedule = build(INFO["schedule"])
    assert schedule.exact_signal == NoiseSchedule().exact_signal
    assert schedule.prediction_type == "v_prediction"


def test_every_argument_of_a_network_is_described():
    described = describe(UNet(channels=(8, 8), embedding_channels=16, norm_groups=2, gradient_checkpointing=True))
    assert described.pop("type") == "UNet"
    assert described == {
        "in_channels": 8,
        "out_channels": None,
        "channels": [8, 8],
        "num_res_blocks": 2,
        "num_classes": 2,
        "embedding_channels": 16,
        "time_channels": None,
        "norm_groups": 2,
        "attention": False,
    }


def test_copies_are_described_like_their_originals():
    copied = torch.nn.ModuleList([network()])[0]
    assert describe(copied.unet) == INFO["networks"]["unet"]


@pytest.mark.parametrize("kind", ["os.system", "Linear", "", None])
def test_only_registered_networks_are_built(kind):
    with pytest.raises(DescriptionError, match="custom network"):
        build({"type": kind, "command": "true"})


def test_arguments_that_a_network_does_not_take_are_named():
    with pytest.raises(DescriptionError, match=r"UNet cannot be built with .*depth"):
        build({"type": "UNet", "depth": 3})


def test_network_of_a_users_own_is_described_by_its_name():
    assert describe(nn.Linear(1, 1)) == {"type": "torch.nn.modules.linear.Linear"}


def test_network_that_only_has_the_name_of_ours_is_not_taken_for_it():
    own = type("UNet", (UNet,), {})(channels=(8, 8), embedding_channels=16, norm_groups=2)
    stranger = type("UNet", (nn.Module,), {})()
    for network in (own, stranger):
        with pytest.raises(DescriptionError, match=r"\.UNet' is a custom network"):
            build(describe(network))


def test_all_places_are_there():
    assert {name: found_at(INFO, name) for name in PLACES} == {
        "class_names": CLASSES,
        "image_size": [32, 48],
        "image_channels": 1,
        "latent_channels": 4,
        "autoencoder_channels": [8, 16],
        "unet_channels": [8, 8, 16],
        "unet_embedding_channels": 16,
        "unet_norm_groups": 4,
        "unet_attention": True,
        "noise_schedule": "scaled_linear",
        "zero_terminal_snr": False,
        "prediction_type": "v_prediction",
    }


def test_what_agrees_or_was_not_given_passes(caplog):
    refuse_contradictions("model.pt", INFO, {"class_names": tuple(CLASSES), "unet_norm_groups": None})
    assert not caplog.records


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("class_names", CLASSES[::-1], r"class_names \['gesund', 'größer'\], this run has \['größer', 'gesund'\]"),
        ("prediction_type", "sample", "prediction_type v_prediction, this run has sample"),
        ("unet_norm_groups", 8, "unet_norm_groups 4, this run has 8"),
        ("unet_attention", False, "unet_attention True, this run has False"),
    ],
)
def test_contradiction_is_refused_with_key_both_values_and_what_to_do(key, value, message):
    with pytest.raises(WeightsError, match=rf"model\.pt were trained with {message}: leave out"):
        refuse_contradictions("model.pt", INFO, {key: value})


def test_all_contradictions_are_reported_at_once():
    with pytest.raises(WeightsError, match=r"class_names .*; prediction_type"):
        refuse_contradictions("model.pt", INFO, {"class_names": ["a"], "prediction_type": "sample"})


def test_another_image_size_is_warned_of_only(caplog):
    refuse_contradictions("model.pt", INFO, {"image_size": [512, 384]})
    assert "trained with image_size [32, 48], this run has [512, 384]" in caplog.text


def test_weights_without_a_required_description_are_refused(tmp_path):
    assert read_model_info(tmp_path / "model.pt") is None
    with pytest.raises(WeightsError, match=r"have no description: .*model\.json is missing. Copy the file"):
        require_model_info(tmp_path / "model.pt")


def test_what_a_description_lacks_is_named(weights):
    write_model_info(weights, {"class_names": ["a"], "image": {}})
    with pytest.raises(WeightsError, match=r"model\.json has no networks, schedule, sampler"):
        require_model_info(weights)


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_damaged_file_is_named(weights, content):
    model_info_path(weights).write_text(content)
    with pytest.raises(WeightsError, match=r"model\.json (cannot be read|is not a JSON object).*Fetch it again"):
        read_model_info(weights)


@pytest.mark.parametrize("version", [2, "new"])
def test_file_of_a_later_version_is_refused(weights, version):
    write_model_info(weights, {**INFO, "format": version})
    with pytest.raises(WeightsError, match=r"model\.json is of format .*reads up to 1: install a newer version"):
        read_model_info(weights)


def test_failed_write_leaves_the_file_before(weights):
    with pytest.raises(TypeError):
        write_model_info(weights, {"class_names": object()})
    assert read_model_info(weights) == INFO
    assert [path.name for path in weights.parent.iterdir()] == ["model.json"]


@pytest.fixture
def described(tmp_path):
    """Safetensors described by their header, with nothing beside them."""
    path = tmp_path / "model.safetensors"
    save_safetensors(nn.Linear(1, 1), path, {METADATA_KEY: json.dumps(INFO)})
    return path


def test_header_of_safetensors_describes_them_without_a_file_beside(described):
    assert require_model_info(described) == INFO


def test_file_beside_safetensors_that_contradicts_them_is_refused(described):
    write_model_info(described, INFO)
    assert read_model_info(described) == INFO
    write_model_info(described, INFO | {"class_shares": None})
    with pytest.raises(WeightsError, match=r"model\.json and the header of .*model\.safetensors describe different"):
        read_model_info(described)


def test_file_of_other_weights_beside_safetensors_is_not_theirs(described):
    write_model_info(described, INFO | {"class_shares": None})
    described.with_suffix(".pt").touch()
    assert read_model_info(described) == INFO


def test_safetensors_without_such_a_text_say_nothing(tmp_path):
    save_safetensors(nn.Linear(1, 1), tmp_path / "model.safetensors")
    assert read_model_info(tmp_path / "model.safetensors") is None


def test_damaged_text_of_a_header_is_named(tmp_path):
    save_safetensors(nn.Linear(1, 1), tmp_path / "model.safetensors", {METADATA_KEY: "[1]"})
    with pytest.raises(WeightsError, match=r"model\.safetensors is not a JSON object"):
        read_model_info(tmp_path / "model.safetensors")
