import json

import pytest
import torch
from tiny_models import save, tiny

from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.networks.autoencoder import Autoencoder
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.networks.monai_adapters import AutoencoderKL, MonaiAutoencoder
from medfusion_monai.networks.unet import UNet
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.training.pretrained_start import PretrainedStart

SCHEDULE = NoiseSchedule(prediction_type="v_prediction")


@pytest.fixture
def weights(tmp_path):
    return save(tiny(), tmp_path / "models" / "model.pt")


def untrained(class_names=None, **unet):
    names = class_names or tiny().class_names
    keywords = {"channels": [16, 16, 32], "num_classes": len(names), "embedding_channels": 32, "norm_groups": 8} | unet
    return Medfusion(Autoencoder(1, channels=[8, 16]), UNet(**keywords), names, (16, 24))


def equal(network, other, but=()):
    ours, theirs = network.state_dict(), other.state_dict()
    return {name for name in ours if not torch.equal(ours[name], theirs[name])} == set(but)


def test_both_networks_start_from_the_weights(weights):
    network = untrained()
    PretrainedStart(weights.parent).fill(network, SCHEDULE)
    assert equal(network, tiny())


def test_without_a_path_nothing_changes():
    network = untrained()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    start = PretrainedStart()
    start.fill(network, SCHEDULE)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert (start.settings, start.origin) == ({}, {})


@pytest.mark.parametrize(("name", "value"), [("guidance_interval", [0.3, 3.0]), ("negative_label", 0)])
def test_guidance_that_few_steps_do_not_learn_is_no_default(name, value, weights):
    info = json.loads(weights.with_suffix(".json").read_text())
    info["sampler"] |= {"guidance_scale": 2.0}
    weights.with_suffix(".json").write_text(json.dumps(info))
    assert PretrainedStart(weights).guidance_scale == 2.0
    info["sampler"][name] = value
    weights.with_suffix(".json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=f"is guided with {name} .* set guidance_scale"):
        assert PretrainedStart(weights).guidance_scale


def test_checkpoints_note_the_checksum(weights):
    assert PretrainedStart(weights, "encoder").settings == {
        "pretrained_model": file_sha256(weights),
        "frozen": "encoder",
    }


def test_other_classes_start_with_random_labels_which_the_log_says(weights, caplog):
    network = untrained(["a", "b", "c", "d", "e"])
    label = "unet.class_embedding.weight"
    before = network.state_dict()[label].clone()
    with caplog.at_level("INFO"):
        PretrainedStart(weights).fill(network, SCHEDULE)
    assert torch.equal(network.state_dict()[label], before)
    state = tiny().state_dict()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items() if name != label)
    assert "the embeddings of a, b, c, d, e start from random values" in caplog.text


@pytest.mark.parametrize(
    ("schedule", "unet", "message"),
    [
        (NoiseSchedule(prediction_type="epsilon"), {}, 'prediction_type was "v_prediction", now it is "epsilon"'),
        (SCHEDULE, {"norm_groups": 4}, "unet was trained with other arguments: norm_groups was 8, now it is 4"),
        (SCHEDULE, {"channels": [16, 16, 64]}, "channels"),
    ],
)
def test_weights_of_other_networks_are_refused_and_change_nothing(weights, schedule, unet, message):
    network = untrained(**unet)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(WeightsError, match="does not fit this training") as caught:
        PretrainedStart(weights).fill(network, schedule)
    assert message in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_missing_and_damaged_weights_are_refused(weights, tmp_path):
    with pytest.raises(WeightsError, match=r"pretrained_model: weights .*none.pt do not exist"):
        PretrainedStart(tmp_path / "none.pt").fill(untrained(), SCHEDULE)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="cannot be read"):
        PretrainedStart(weights).fill(untrained(), SCHEDULE)


def test_weights_without_a_description_are_refused(weights):
    weights.with_suffix(".json").unlink()
    with pytest.raises(WeightsError, match=r"model\.json"):
        PretrainedStart(weights).fill(untrained(), SCHEDULE)


def test_settings_that_make_no_sense_are_refused(weights):
    with pytest.raises(ValueError, match="frozen must be null, encoder or autoencoder, received 'decoder'"):
        PretrainedStart(weights, "decoder")
    with pytest.raises(ValueError, match="random weights must be trained: set pretrained_model"):
        PretrainedStart(None, "encoder")


@pytest.mark.parametrize(
    "network",
    [
        Autoencoder(1, channels=[8, 16]),
        MonaiAutoencoder(
            AutoencoderKL(
                spatial_dims=2,
                in_channels=1,
                out_channels=1,
                num_res_blocks=[1, 1],
                channels=(8, 16),
                latent_channels=8,
                norm_num_groups=4,
                attention_levels=(False, False),
            ),
            downsampling_factor=2,
        ),
    ],
    ids=["ours", "monai"],
)
def test_frozen_encoder_leaves_all_that_decodes_and_nothing_else(weights, network):
    trained = PretrainedStart(weights, "encoder").trained(network)
    network.decode(torch.randn(1, 8, 4, 4)).sum().backward()
    decoding = {id(value) for value in network.parameters() if value.grad is not None}
    low = network.decode_with_low(torch.randn(1, 8, 4, 4))[1]
    if low is not None:
        low.sum().backward()
        decoding |= {id(value) for value in network.parameters() if value.grad is not None}
    assert {id(value) for value in trained} == decoding
    posterior = network.encode(torch.randn(1, 1, 8, 8))
    assert not posterior.mean.requires_grad


def test_description_of_a_later_format_is_refused(weights):
    file = weights.with_suffix(".json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
    with pytest.raises(WeightsError, match="format"):
        PretrainedStart(weights).fill(untrained(), SCHEDULE)


def test_zip_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "bundle.zip").write_bytes(b"PK")
    with pytest.raises(WeightsError, match="is a zip: unzip it"):
        PretrainedStart(tmp_path / "bundle.zip")


def test_origin_has_known_keys_alone_and_outlives_the_file(weights):
    file = weights.with_suffix(".json")
    info = json.loads(file.read_text())
    info["training"] |= {"source": "/ward7/ANNA", "started_from": {"images": "cd" * 32, "path": "/ward7"}}
    file.write_text(json.dumps(info))
    digest = file_sha256(weights)
    start = PretrainedStart(weights)
    start.fill(untrained(), SCHEDULE)
    weights.unlink()
    known = {"images": info["training"]["images"], "image_count": 557, "started_from": {"images": "cd" * 32}}
    assert start.origin == {"started_from": {"weights_sha256": digest, **known}}


@pytest.mark.parametrize("given", ["models", ".", "models/model.pt", "models/starter"])
def test_weights_that_the_training_would_replace_or_shadow_are_refused(weights, given, tmp_path):
    start = PretrainedStart(tmp_path / given if given != "models/starter" else weights)
    if given == "models/starter":
        start.refuse_own_output(tmp_path / "other")
        return
    with pytest.raises(ValueError, match="the training writes model.pt"):
        start.refuse_own_output(tmp_path / "models")
