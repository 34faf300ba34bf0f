"""`run train_small_decoder`: stopped and continued, sampled with, and what it refuses."""

import csv
import json
import re
import shutil
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
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.weights.decoder_file import METADATA_KEY, NAME, latents_sha256
from medfusion_monai.weights.state_dict import read_safetensors_metadata

CONFIGS = Path(__file__).parents[2] / "bundles" / "medfusion_cxr" / "configs"
OVERLAYS = ("demo.yaml", "small_decoder.yaml")
# A changing learning rate and random transforms included; each step's loss is logged.
TINY = {
    "small_decoder_channels": [8, 8, 4],
    "small_decoder_blocks": [1, 1, 1],
    "small_decoder_batch_size": 4,
    "small_decoder_steps": 6,
    "small_decoder_val_interval": 3,
    "small_decoder_lr_warmup": 2,
    "log_interval": 1,
    "random_transforms": [{"_target_": "RandFlipd", "keys": "image", "prob": 0.5, "spatial_axis": 1}],
}


def places(folder):
    return {"model_dir": str(folder / "models"), "output_dir": str(folder / "runs")}


@pytest.fixture(scope="module")
def train(bundle, dataset_dir, lively):
    """Trains a small decoder in a folder with weights whose images have contrast."""

    def run(folder, run_id="train_small_decoder", **overrides):
        if not (folder / "models").is_dir():
            shutil.copytree(lively, folder / "models")
        settings = TINY | {"dataset_dir": str(dataset_dir)} | places(folder) | overrides
        bundle(run_id, overlays=OVERLAYS, **settings)
        return folder

    return run


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """A folder with ``models`` and ``runs`` of a training that was never stopped."""
    return train(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("number", [2, 3, 5])
def test_signalled_training_continues_with_the_same_bits(number, train, whole, tmp_path, monkeypatch):
    stop_by_signal(monkeypatch, number, lambda: train(tmp_path))
    assert iteration_of(tmp_path, "small_decoder") == number
    train(tmp_path, "training")
    assert_same_end(tmp_path, whole, "small_decoder", as_states=())


def test_training_that_is_lost_within_an_epoch_continues_with_the_same_bits(train, whole, tmp_path, monkeypatch):
    lose(monkeypatch, 6, lambda: train(tmp_path, checkpoint_interval=2))
    train(tmp_path)
    assert_same_end(tmp_path, whole, "small_decoder", as_states=())


def test_checkpoint_of_other_weights_is_refused(train, whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    weights = torch.load(tmp_path / "models/model.pt", weights_only=True)
    torch.save({name: 0.5 * value for name, value in weights.items()}, tmp_path / "models/model.pt")
    with pytest.raises((RuntimeError, ValueError)) as caught:
        train(tmp_path)
    assert "belongs to another run: pretrained_model was" in str(first_cause(caught.value))


def test_loss_falls_and_pictures_show_both_decoders(train, trained, tmp_path):
    shutil.copytree(trained / "models", tmp_path / "models")
    train(tmp_path, small_decoder_steps=40, small_decoder_val_interval=20, random_transforms=[])
    events = EventAccumulator(str(next((tmp_path / "runs/tensorboard").iterdir()))).Reload()
    losses = [event.value for event in events.Scalars("small_decoder/loss")]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert {"small_decoder_val_loss", "small_decoder_val_ssim"} <= set(events.Tags()["scalars"])
    assert len(list((tmp_path / "runs/pictures").glob("decoded_*.png"))) == 2


def test_file_says_whose_latents_it_decodes(whole):
    info = json.loads(read_safetensors_metadata(whole / "models" / NAME)[METADATA_KEY])
    assert info["latents_sha256"] == latents_sha256(mf.load(whole / "models", "cpu").network.autoencoder)
    assert (info["network"]["type"], info["network"]["channels"]) == ("SmallDecoder", [8, 8, 4])
    assert (info["training"]["steps"], info["training"]["images_per_step"]) == (6, 4)
    assert info["training"]["started_from"]["weights_sha256"] == file_sha256(whole / "models/model.pt")


def test_inference_decodes_by_it_and_the_manifest_says_so(bundle, whole, tmp_path):
    models, decoder = str(whole / "models"), whole / "models" / NAME
    common = {"label": 1, "num_samples": 2, "batch_size": 2, "model_dir": models}
    for name, choice in (("small", "small"), ("file", str(decoder)), ("full", "full")):
        bundle("inference", "inference.yaml", output_dir=str(tmp_path / name), decoder=choice, **common)
    rows = {}
    for name in ("small", "file", "full"):
        with open(tmp_path / name / "manifest.csv", newline="") as file:
            rows[name] = list(csv.DictReader(file))
    assert {row["decoder"] for row in rows["small"]} == {file_sha256(decoder)}
    assert rows["small"] == rows["file"]
    assert {row["decoder"] for row in rows["full"]} == {"full"}
    image = rows["small"][0]["file"]
    assert (tmp_path / "small" / image).read_bytes() != (tmp_path / "full" / image).read_bytes()
    with pytest.raises((RuntimeError, ValueError)) as caught:
        bundle("inference", "inference.yaml", output_dir=str(tmp_path / "small"), **common)
    assert re.search("has decoder [0-9a-f]{64}, this run has full", str(first_cause(caught.value)))


@pytest.mark.parametrize("modality", ["fundus", "histo"])
def test_colour_bundle_trains_and_samples(modality, bundle, tmp_path):
    prepare_phantoms(tmp_path / "data", num_images=20, size=32, modality=modality)
    configs = CONFIGS.parents[1] / f"medfusion_{modality}" / "configs"
    own = TINY | {"small_decoder_steps": 2, "small_decoder_val_interval": 2, "dataset_dir": str(tmp_path / "data")}
    start = {"diffusion_steps": 2, "autoencoder_steps": 2, "dataset_dir": str(tmp_path / "data")}
    bundle("training", configs=configs, **start, **places(tmp_path))
    bundle("train_small_decoder", overlays=OVERLAYS, configs=configs, **own, **places(tmp_path))
    assert mf.load(tmp_path / "models").sample(0, num_inference_steps=2, decoder="small").shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"pretrained_model": "null"}, "pretrained_model is null: a small decoder imitates that of a trained model"),
        ({"small_decoder_channels": [8, 8], "small_decoder_blocks": [1, 1]}, "has 2 levels, which enlarge latents 4"),
        ({"small_decoder_steps": 5}, "small_decoder_steps 5 is not a multiple of small_decoder_val_interval 3"),
        ({"autoencoder_channels": [8, 8, 16, 24]}, "does not fit this training"),
        ({"run_id": "train_diffusion"}, "trains a small decoder, which has no train_diffusion: run training"),
    ],
)
def test_bad_setting_is_refused_before_the_first_step(train, tmp_path, overrides, said):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        train(tmp_path, **overrides)
    assert said in str(first_cause(caught.value))
    assert not (tmp_path / "models" / NAME).exists()


def test_decoder_without_trained_weights_is_refused(train, tmp_path):
    (tmp_path / "models").mkdir()
    with pytest.raises((RuntimeError, ValueError)) as caught:
        train(tmp_path)
    assert "model.pt do not exist: run training first" in str(first_cause(caught.value))


def test_decoder_of_another_model_is_refused_in_inference(bundle, whole, tmp_path):
    save(tiny(), tmp_path / "model.pt")
    with pytest.raises((RuntimeError, ValueError)) as caught:
        bundle(
            "inference",
            "inference.yaml",
            model_dir=str(tmp_path),
            output_dir=str(tmp_path / "samples"),
            decoder=str(whole / "models" / NAME),
        )
    assert "does not fit the model: reduction of height and width 8, the model has 2" in str(first_cause(caught.value))


def test_check_passes_and_states_memory_time_and_disk(dataset_dir, lively, tmp_path, capsys):
    options = []
    own = TINY | {"model_dir": str(lively), "output_dir": str(tmp_path), "dataset_dir": str(dataset_dir)}
    sizes = {"image_size": [32, 32], "autoencoder_channels": [8, 8, 16, 16], "unet_channels": [16, 16, 16, 32]}
    sizes |= {"unet_embedding_channels": 32, "unet_norm_groups": 8, "device": "cpu"}
    for key, value in (own | sizes).items():
        options += ["--set", f"{key}={json.dumps(value)}"]
    files = [str(CONFIGS / name) for name in ("train.yaml", *OVERLAYS)]
    assert main(["check", *files, "--run", "train_small_decoder", *options]) == 0
    table = capsys.readouterr().out
    assert re.search(r"room: memory +ok +small_decoder [\d.]+ [MG]iB, about .* for 6 steps", table)
    assert not any(tmp_path.iterdir())
