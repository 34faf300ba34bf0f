"""Trainings that start from weights, in whole or in part."""

import shutil

import pytest
import torch

import medfusion_monai as mf
from medfusion_monai.cli import main
from medfusion_monai.runtime.errors import first_cause
from medfusion_monai.runtime.files import file_sha256


def load(path):
    return torch.load(path, weights_only=True)


@pytest.fixture
def start(trained, tmp_path):
    """The weights of a training, in a folder of their own."""
    return shutil.copytree(trained / "models", tmp_path / "start")


@pytest.fixture
def training(bundle, dataset_dir, tmp_path):
    """Runs a training that starts from weights, and returns the folder of its own."""

    def start_from(weights, run_id="training", **overrides):
        places = {"model_dir": str(tmp_path / "m"), "output_dir": str(tmp_path / "r"), "dataset_dir": str(dataset_dir)}
        bundle(run_id, pretrained_model=str(weights), **(places | overrides))
        return tmp_path / "m"

    return start_from


def refusal(training, *args, **overrides):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        training(*args, **overrides)
    return str(first_cause(caught.value))


def changed(first, second):
    return {name for name in first if not torch.equal(first[name], second[name])}


def test_both_phases_start_from_the_weights(training, start):
    """One step of a learning rate of almost nothing leaves them almost as they are."""
    rates = {"autoencoder_lr": 1.0e-12, "diffusion_lr": 1.0e-12}
    steps = {f"{phase}_{key}": 1 for phase in ("autoencoder", "diffusion") for key in ("steps", "val_interval")}
    after, before = load(training(start, **rates, **steps) / "model.pt"), load(start / "model.pt")
    for name, value in after.items():
        torch.testing.assert_close(value, before[name], atol=1e-6, rtol=1e-5)


def test_frozen_encoder_keeps_the_latents_and_its_decoder_fits_the_model(training, start, tmp_path):
    folder = training(start, run_id="train_autoencoder", frozen="encoder")
    assert not (folder / "model.pt").exists()
    before = {key.removeprefix("autoencoder."): value for key, value in load(start / "model.pt").items()}
    parts = {name.split(".")[0] for name in changed(load(folder / "autoencoder.pt"), before)}
    assert parts == {"decoder", "from_latents", "conv_out", "conv_out_low"}
    new = tmp_path / "new"
    command = ["assemble", "--autoencoder", str(folder / "autoencoder.pt"), "--model-file", str(start)]
    assert main([*command, "--output", str(new)]) == 0
    assert torch.equal(mf.load(new, "cpu").sample_latents(0), mf.load(start, "cpu").sample_latents(0))


def test_frozen_autoencoder_is_kept_and_the_unet_goes_on(training, start):
    folder = training(start, frozen="autoencoder")
    after, before = load(folder / "model.pt"), load(start / "model.pt")
    assert {name.split(".")[0] for name in changed(after, before)} == {"unet"}
    training(start, frozen="autoencoder", diffusion_steps=6)  # resumes


def test_weights_say_what_they_started_from(training, start, tmp_path):
    folder = training(start, frozen="autoencoder", class_names=["no_cardiomegaly", "cardiomegaly"])
    before = mf.load(start, "cpu")
    described = mf.load(folder, "cpu").info["training"]["started_from"]
    assert described["weights_sha256"] == file_sha256(start / "model.pt")
    assert described["images"] == before.trained_on
    assert described["image_count"] == before.info["training"]["image_count"]
    assert mf.load(folder, "cpu").earlier_trained_on == [before.trained_on]
    assert before.earlier_trained_on == []
    out = tmp_path / "export"
    assert main(["export", "--model-file", str(folder), "--format", "safetensors", "--output", str(out)]) == 0
    assert f"started from other weights (SHA-256 {described['weights_sha256']})" in (out / "README.md").read_text()
    assert mf.load(out, "cpu").earlier_trained_on == [before.trained_on]


def test_checkpoint_of_another_start_is_refused(training, start):
    training(start, run_id="train_autoencoder", autoencoder_steps=2)
    assert 'frozen was null, now it is "encoder"' in refusal(
        training, start, run_id="train_autoencoder", frozen="encoder"
    )
    state = load(start / "model.pt")
    state["unet.conv_in.bias"] += 1.0
    torch.save(state, start / "model.pt")
    assert "pretrained_model was" in refusal(training, start, run_id="train_autoencoder")


def test_weights_that_the_training_would_write_over_are_refused(training, start):
    message = refusal(training, start, model_dir=str(start))
    assert "is the file that the training writes" in message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"frozen": "decoder"}, "frozen must be null, encoder or autoencoder"),
        ({"unet_channels": [16, 16, 16, 64]}, "does not fit this training"),
        ({"prediction_type": "epsilon"}, "schedule.prediction_type"),
        ({"latent_channels": 4}, "autoencoder was trained with other arguments"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_written(overrides, message, training, start, tmp_path):
    assert message in refusal(training, start, **overrides)
    assert not list((tmp_path / "m").glob("*"))


def test_frozen_without_weights_and_missing_weights_are_refused(training, start, tmp_path):
    assert "set pretrained_model" in refusal(training, "null", frozen="encoder")
    assert "do not exist" in refusal(training, tmp_path / "none")


def test_training_with_equivariance_resumes_as_if_it_had_not_stopped(bundle, dataset_dir, tmp_path):
    keys = {"equivariance": 0.7, "ssim_window": 7, "dataset_dir": str(dataset_dir)}
    results = {}
    for name, stops in {"whole": [4], "stopped": [2, 4]}.items():
        places = {"model_dir": str(tmp_path / name), "output_dir": str(tmp_path / f"{name}_runs")}
        for steps in stops:
            bundle("train_autoencoder", **keys, **places, autoencoder_steps=steps)
        results[name] = load(tmp_path / name / "autoencoder.pt")
    assert not changed(results["whole"], results["stopped"])
    places = {"model_dir": str(tmp_path / "plain"), "output_dir": str(tmp_path / "plain_runs")}
    bundle("train_autoencoder", **(keys | {"equivariance": 0.0}), **places)
    assert changed(results["whole"], load(tmp_path / "plain" / "autoencoder.pt"))
    with pytest.raises(RuntimeError) as caught:
        bundle("train_autoencoder", **keys, **places)
    assert "equivariance was 0.0, now it is 0.7" in str(first_cause(caught.value))


def test_equivariance_that_the_images_are_too_small_for_is_refused(bundle, dataset_dir, tmp_path):
    places = {"model_dir": str(tmp_path / "m"), "output_dir": str(tmp_path / "r"), "dataset_dir": str(dataset_dir)}
    with pytest.raises((RuntimeError, ValueError)) as caught:
        bundle("training", equivariance=0.5, **places)
    assert "ssim_window 11 does not fit" in str(first_cause(caught.value))
