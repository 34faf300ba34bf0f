"""`run training` with sharper_decoder.yaml: only what decodes is trained, and a stopped training ends the same."""

import shutil
from pathlib import Path

import pytest
import torch
from stopped_runs import assert_same_end, iteration_of, lose

import medfusion_monai as mf
from medfusion_monai.cli import main
from medfusion_monai.losses.feature_discriminator import STAGES

BUNDLES = Path(__file__).parents[2] / "bundles"
STEPS = {"autoencoder_steps": 4, "autoencoder_val_interval": 2, "autoencoder_lr_warmup": 2, "log_interval": 1}


@pytest.fixture(scope="module")
def train(bundle, dataset_dir, trained):
    """Trains the decoder of finished weights further, in a folder of its own."""

    def run(folder, **overrides):
        if not (folder / "start").is_dir():
            shutil.copytree(trained / "models", folder / "start")
        places = {"pretrained_model": folder / "start", "model_dir": folder / "models", "output_dir": folder / "runs"}
        settings = STEPS | {"dataset_dir": str(dataset_dir)} | {name: str(path) for name, path in places.items()}
        bundle("training", overlays=("demo.yaml", "sharper_decoder.yaml"), **settings | overrides)
        return folder

    return run


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """A folder with ``models`` and ``runs`` of a training that was never stopped."""
    return train(tmp_path_factory.mktemp("whole"))


def test_encoder_stays_and_the_model_with_the_new_decoder_samples(whole, tmp_path):
    command = ["assemble", "--autoencoder", str(whole / "models/autoencoder.pt"), "--model-file", str(whole / "start")]
    assert main([*command, "--output", str(tmp_path / "new")]) == 0
    old, new = (mf.load(folder, "cpu") for folder in (whole / "start", tmp_path / "new"))
    latents = old.sample_latents(0, n=1)
    assert torch.equal(new.sample_latents(0, n=1), latents)
    assert not torch.equal(new.decode(latents), old.decode(latents))


def test_heads_on_features_learn_from_the_first_step(whole):
    state = torch.load(whole / "runs/checkpoints/autoencoder_training.pt", weights_only=True)
    last = [state["objects"]["discriminators"][f"discriminators.0.heads.{stage}.6.weight"] for stage in STAGES]
    assert all(weights.count_nonzero() > 0 for weights in last)  # 0 before the first step


def test_training_that_is_lost_within_an_epoch_continues_with_the_same_bits(train, whole, tmp_path, monkeypatch):
    lose(monkeypatch, 4, lambda: train(tmp_path, checkpoint_interval=1))
    assert iteration_of(tmp_path, "autoencoder") == 3
    train(tmp_path)
    assert_same_end(tmp_path, whole, "autoencoder", as_states=("autoencoder.pt",))


def test_overlay_is_the_same_in_every_bundle():
    texts = {path.read_text() for path in BUNDLES.glob("*/configs/sharper_decoder.yaml")}
    assert len(texts) == 1
    assert len(list(BUNDLES.glob("*/configs/sharper_decoder.yaml"))) == 3
