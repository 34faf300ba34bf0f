"""`run training` with gan.yaml: stopped and continued, sampled, measured, audited; and what a GAN cannot do."""

import csv
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from stopped_runs import assert_same_end, iteration_of, lose, stop_by_signal
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_models import save, tiny

import medfusion_monai as mf
from medfusion_monai.cli import main
from medfusion_monai.demo.phantoms.families import prepare_phantoms
from medfusion_monai.runtime.errors import first_cause

CONFIGS = Path(__file__).parents[2] / "bundles" / "medfusion_cxr" / "configs"
OVERLAYS = ("demo.yaml", "gan.yaml")
SIZE = [48, 48]
# Rising augmentation, falling learning rate and penalties, and random transforms included; each step's loss is logged.
TINY = {
    "image_size": SIZE,
    "gan_channels": [4, 8, 8],
    "gan_noise_channels": 8,
    "gan_batch_size": 4,
    "gan_steps": 6,
    "gan_val_interval": 3,
    "gan_ramp_steps": 4,
    "log_interval": 1,
    "random_transforms": [{"_target_": "RandFlipd", "keys": "image", "prob": 0.5, "spatial_axis": 1}],
}


def places(folder):
    return {"model_dir": str(folder / "models"), "output_dir": str(folder / "runs")}


@pytest.fixture(scope="module")
def train(bundle, dataset_dir):
    def run(folder, run_id="training", **overrides):
        settings = TINY | {"dataset_dir": str(dataset_dir)} | places(folder) | overrides
        bundle(run_id, overlays=OVERLAYS, **settings)
        return folder

    return run


@pytest.fixture(scope="module")
def gan(train, tmp_path_factory):
    """A folder with ``models`` and ``runs`` of a GAN that was never stopped."""
    return train(tmp_path_factory.mktemp("gan"))


@pytest.mark.parametrize("number", [2, 3, 5])
def test_signalled_training_continues_with_the_same_bits(number, train, gan, tmp_path, monkeypatch):
    stop_by_signal(monkeypatch, number, lambda: train(tmp_path))
    assert iteration_of(tmp_path, "gan") == number
    train(tmp_path, "train_gan")
    assert_same_end(tmp_path, gan, "gan")


def test_training_that_is_lost_within_an_epoch_continues_with_the_same_bits(train, gan, tmp_path, monkeypatch):
    lose(monkeypatch, 6, lambda: train(tmp_path, checkpoint_interval=2))
    assert iteration_of(tmp_path, "gan") == 4
    train(tmp_path)
    assert_same_end(tmp_path, gan, "gan")


@pytest.mark.slow
def test_command_that_is_killed_at_random_moments_ends_with_the_same_bits(gan, dataset_dir, tmp_path):
    steps = {"gan_steps": 60, "gan_val_interval": 20, "gan_ramp_steps": 40, "checkpoint_interval": 3}
    own = TINY | steps | {"dataset_dir": str(dataset_dir), "device": "cpu", "trial_step": False}
    files = str([str(CONFIGS / name) for name in ("train.yaml", *OVERLAYS)])
    for name, kills in (("killed", 4), ("whole", 0)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "settings.json").write_text(json.dumps(own | places(folder)))
        launched = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", files]
        launched += ["--args_file", str(folder / "settings.json")]
        for kill in range(kills + 1):
            log = folder / f"{kill}.log"
            with open(log, "wb") as file, subprocess.Popen(launched, stdout=file, stderr=file) as process:
                while b"GAN:" not in log.read_bytes() and process.poll() is None:
                    time.sleep(0.05)
                if kill < kills:
                    time.sleep(0.3 * (kill + 1))
                    process.kill()
        assert process.returncode == 0, log.read_text()[-2000:]
    assert_same_end(tmp_path / "killed", tmp_path / "whole", "gan")


def test_checkpoint_of_other_settings_is_refused_and_a_learning_rate_may_change(train, gan, tmp_path):
    for name in ("runs/checkpoints", "models"):
        (tmp_path / name).mkdir(parents=True)
        for path in (gan / name).iterdir():
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    with pytest.raises((RuntimeError, ValueError)) as caught:
        train(tmp_path, gan_penalty=[3.0, 0.3])
    assert "belongs to another run: loss.penalty was" in str(first_cause(caught.value))
    train(tmp_path, gan_steps=9, gan_lr=[1.0e-4, 1.0e-5])
    assert json.loads((tmp_path / "models/model.json").read_text())["training"]["steps"] == 9


@pytest.mark.parametrize("modality", ["fundus", "histo"])
def test_colour_bundle_trains_and_samples(modality, bundle, tmp_path):
    prepare_phantoms(tmp_path / "data", num_images=20, size=32, modality=modality)
    configs = CONFIGS.parents[1] / f"medfusion_{modality}" / "configs"
    own = {"image_size": [32, 32], "gan_channels": [4, 8, 8, 8], "gan_batch_size": 4, "gan_steps": 2}
    own |= {"gan_val_interval": 2, "dataset_dir": str(tmp_path / "data"), **places(tmp_path)}
    bundle("train_gan", overlays=OVERLAYS, configs=configs, **own)
    assert mf.load(tmp_path / "models").sample(0).shape == (1, 3, 32, 32)


def test_training_logs_losses_and_penalties_and_draws_a_row_per_class(gan):
    events = EventAccumulator(str(next((gan / "runs/tensorboard").iterdir()))).Reload()
    names = {f"gan/{name}" for name in ("loss", "lr", "discriminator", "real_penalty", "fake_penalty")}
    assert names | {"gan_val_loss"} <= set(events.Tags()["scalars"])
    rates = [event.value for event in events.Scalars("gan/lr")]
    assert rates[0] == pytest.approx(2.0e-4)
    assert rates[-1] == pytest.approx(5.0e-5)
    assert len(list((gan / "runs/pictures").glob("samples_*.png"))) == 2


def test_weights_say_what_they_are_and_sample_in_python(gan):
    info = json.loads((gan / "models/model.json").read_text())
    assert info["networks"].keys() == {"generator"}
    assert "schedule" not in info
    assert (info["training"]["steps"], info["training"]["images_per_step"]) == (6, 4)
    model = mf.load(gan / "models")
    images = model.sample("cardiomegaly", n=2, seed=1)
    assert images.shape == (2, 1, *SIZE)
    assert not model.has_latents
    torch.testing.assert_close(images[1:], model.sample(1, n=2, seed=1, batch_size=1)[1:])


@pytest.fixture(scope="module")
def samples(bundle, gan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    bundle("inference", "inference.yaml", **SAMPLING, model_dir=str(gan / "models"), output_dir=str(folder))
    return folder


SAMPLING = {"num_samples": 6, "num_inference_steps": None}


def test_inference_writes_files_manifest_and_card(samples, gan):
    with open(samples / "manifest.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert {(row["sampler"], row["image_size"]) for row in rows} == {("gan", "48x48")}
    assert all((samples / row["file"]).is_file() for row in rows)
    assert "sampler | gan" in (samples / "card.md").read_text()


def test_evaluation_leaves_out_reconstructions_and_measures_samples(
    bundle, gan, samples, dataset_dir, features, tmp_path
):
    common = {"dataset_dir": str(dataset_dir), "model_dir": str(gan / "models"), "samples_dir": str(samples)}
    quiet = {"classifier_seeds": [], "replicates": 0, "neighbours": 2, "features": features}
    bundle("evaluating", "evaluate.yaml", output_dir=str(tmp_path), **common, **quiet)
    report = json.loads((tmp_path / "report.json").read_text())
    assert "reconstructions" not in report
    assert "Reconstructions were not measured: the model is a GAN, which has no autoencoder." in report["warnings"]
    assert "GAN" in {row["name"] for row in report["fidelity"]}


def test_audit_compares_images_and_says_that_there_is_no_denoising_loss(gan, samples, dataset_dir, features, tmp_path):
    options = ["--dataset-dir", str(dataset_dir), "--samples", str(samples), "--output", str(tmp_path)]
    options += ["--model-file", str(gan / "models"), "--features", features, "--power-images", "0", "--no-pictures"]
    assert main(["audit", *options]) == 0
    audit = json.loads((tmp_path / "audit.json").read_text())["audit"]
    assert audit["membership"]["auc"]["note"] == "not measured: the model is a GAN, which has no denoising loss"


def test_export_writes_safetensors_that_sample_the_same_and_no_onnx(gan, tmp_path, capsys):
    model = str(gan / "models")
    assert main(["export", "--model-file", model, "--output", str(tmp_path), "--format", "safetensors"]) == 0
    images = [mf.load(place).sample(1, n=1) for place in (model, tmp_path / "model.safetensors")]
    assert torch.equal(*images)
    assert "type of generator | GanGenerator" in (tmp_path / "README.md").read_text()
    assert main(["export", "--model-file", model, "--output", str(tmp_path), "--format", "onnx"]) == 2
    assert "are those of a GAN, which has no autoencoder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"class_names": ["all"]}, "the GAN draws images of a class and needs two or more"),
        ({"gan_batch_size": 64}, "gan_batch_size 64 is more than the 32 training images"),
        ({"pretrained_model": "nowhere.pt", "frozen": "autoencoder"}, "a GAN starts from random weights"),
        ({"precision": "bfloat16"}, "a GAN is trained in float32"),
        ({"gan_steps": 5}, "gan_steps 5 is not a multiple of gan_val_interval 3"),
        ({"gan_lr": 1.0e-4}, "gan_lr must be two numbers"),
        ({"gan_augmentations": ["turn"]}, "gan_augmentations must be a list of some of"),
        ({"image_size": [50, 48]}, "multiples of 4"),
        ({"run_id": "train_diffusion"}, "gan.yaml trains a GAN, which has no train_diffusion"),
    ],
)
def test_bad_setting_is_refused_before_the_first_step(train, tmp_path, overrides, said):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        train(tmp_path, **overrides)
    assert said in str(first_cause(caught.value))
    assert not (tmp_path / "runs" / "checkpoints" / "gan_training.pt").exists()


def test_weights_of_the_other_kind_are_not_replaced(bundle, train, gan, dataset_dir, tmp_path):
    save(tiny(), tmp_path / "models" / "model.pt")
    with pytest.raises((RuntimeError, ValueError)) as caught:
        train(tmp_path)
    assert re.search("model.pt are the weights of a diffusion model, .* choose another", str(first_cause(caught.value)))
    with pytest.raises((RuntimeError, ValueError)) as caught:
        bundle("training", dataset_dir=str(dataset_dir), **places(gan))
    assert re.search("model.pt are the weights of a GAN, .* choose another", str(first_cause(caught.value)))


@pytest.mark.parametrize(
    ("config", "overrides", "said"),
    [
        (
            "inference.yaml",
            {"guidance_scale": 2.0},
            "samples in one step and without guidance: leave out guidance_scale",
        ),
        ("inference.yaml", {"num_inference_steps": 5}, "leave out num_inference_steps"),
        ("inference.yaml", {"unet_channels": [8, 8]}, "have only these networks: generator. Leave out unet_channels"),
        ("inference.yaml", {"prediction_type": "epsilon"}, "Leave out prediction_type"),
        ("inference.yaml", {"image_size": [96, 96]}, "draws images of [48, 48] only"),
        ("edit.yaml", {"edit": "classify", "images": "."}, "are those of a GAN"),
        ("edit.yaml", {"edit": "counterfactual", "images": ".", "label": 1}, "are those of a GAN"),
        ("evaluate.yaml", {"sweep_steps": [2], "samples_dir": None}, "leave out other_autoencoders and sweep_steps"),
    ],
)
def test_what_a_gan_cannot_do_is_refused_at_once(bundle, gan, dataset_dir, tmp_path, config, overrides, said):
    run_id = {"inference.yaml": "inference", "edit.yaml": "editing", "evaluate.yaml": "evaluating"}[config]
    own = {"num_inference_steps": None} if config == "inference.yaml" else {}
    own |= {"dataset_dir": str(dataset_dir)} if config == "evaluate.yaml" else {}
    with pytest.raises((RuntimeError, ValueError)) as caught:
        bundle(run_id, config, model_dir=str(gan / "models"), output_dir=str(tmp_path), **(own | overrides))
    assert said in str(first_cause(caught.value))


def test_gan_is_refused_where_a_diffusion_model_is_needed(bundle, gan, dataset_dir, tmp_path, capsys):
    weights, diffusion = str(gan / "models"), save(tiny(), tmp_path / "diffusion" / "model.pt")
    for overrides in ({}, {"frozen": "autoencoder"}):
        settings = {"dataset_dir": str(dataset_dir), "pretrained_model": weights}
        with pytest.raises((RuntimeError, ValueError)) as caught:
            bundle("training", **settings, **places(tmp_path), **overrides)
        assert "are those of a GAN" in str(first_cause(caught.value))
    with pytest.raises(ValueError, match="are those of a GAN"):
        mf.load(diffusion).sample(0, guidance_scale=2.0, guidance_model=weights)
    options = ["--autoencoder", str(gan / "models/model.pt"), "--model-file", weights]
    assert main(["assemble", *options, "--output", str(tmp_path / "new")]) == 2
    assert "are those of a GAN" in capsys.readouterr().err
    model = mf.load(weights)
    images = torch.rand(1, 1, *SIZE)
    for call in (model.encode, model.reconstruct, lambda x: model.sample_latents(0), lambda x: model.schedule):
        with pytest.raises(ValueError, match="GAN, which has no"):
            call(images)


def test_diffusion_network_is_refused_for_the_weights_of_a_gan(gan):
    with pytest.raises(ValueError, match="it has autoencoder, unet, the weights have generator"):
        mf.load(gan / "models", network=tiny())


def test_check_passes_and_states_memory_time_and_disk(dataset_dir, tmp_path, capsys):
    options = []
    for key, value in (TINY | places(tmp_path) | {"dataset_dir": str(dataset_dir), "device": "cpu"}).items():
        options += ["--set", f"{key}={json.dumps(value)}"]
    assert (
        main(["check", *(str(CONFIGS / name) for name in ("train.yaml", *OVERLAYS)), "--run", "train_gan", *options])
        == 0
    )
    table = capsys.readouterr().out
    assert re.search(r"room: memory +ok +gan [\d.]+ [MG]iB, about .* for 6 steps", table)
    assert "room: disk" in table
    assert not any(tmp_path.iterdir())
