"""`run training` with few_steps.yaml: stopped and continued, sampled; and what weights for few steps cannot do."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from stopped_runs import assert_same_end, iteration_of, stop_by_signal
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_models import save, save_gan, tiny

import medfusion_monai as mf
from medfusion_monai.cli import main
from medfusion_monai.demo.phantoms.families import prepare_phantoms
from medfusion_monai.editing import classify, interpolate, variations
from medfusion_monai.runtime.errors import first_cause
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.training import few_step_target
from medfusion_monai.weights.assembled import write_guided
from medfusion_monai.weights.model_info import read_model_info, write_model_info

CONFIGS = Path(__file__).parents[2] / "bundles" / "medfusion_cxr" / "configs"
OVERLAYS = ("demo.yaml", "few_steps.yaml")
# Micro-batches and a falling learning rate included; each step's loss is logged.
TINY = {
    "num_inference_steps": 2,
    "tuning_batch_size": 4,
    "micro_batch_size": 2,
    "tuning_steps": 6,
    "tuning_val_interval": 3,
    "tuning_lr_warmup": 2,
    "tuning_teacher_steps": 2,
    "log_interval": 1,
}


def places(folder):
    return {"model_dir": str(folder / "models"), "output_dir": str(folder / "runs"), "latents_dir": None}


@pytest.fixture(scope="module")
def train(bundle, dataset_dir, trained):
    def run(folder, run_id="training", **overrides):
        own = {"dataset_dir": str(dataset_dir), "pretrained_model": str(trained / "models")}
        bundle(run_id, overlays=OVERLAYS, **(TINY | own | places(folder) | overrides))
        return folder

    return run


@pytest.fixture(scope="module")
def tuned(train, tmp_path_factory):
    """A folder with ``models`` and ``runs`` of a tuning that was never stopped."""
    return train(tmp_path_factory.mktemp("tuned"))


def refusal(call, *args, **kwargs):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        call(*args, **kwargs)
    return str(first_cause(caught.value))


@pytest.mark.parametrize("number", [2, 3, 5])
def test_signalled_training_continues_with_the_same_bits(number, train, tuned, tmp_path, monkeypatch):
    stop_by_signal(monkeypatch, number, lambda: train(tmp_path))
    assert iteration_of(tmp_path, "tuning") == number
    train(tmp_path, "train_few_steps")
    assert_same_end(tmp_path, tuned, "tuning")


def test_only_the_unet_changes_and_the_weights_say_what_they_are(tuned, trained):
    before, after = (torch.load(folder / "models/model.pt", weights_only=True) for folder in (trained, tuned))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"unet"}
    info = json.loads((tuned / "models/model.json").read_text())
    sampler = info["sampler"]
    assert (sampler["sampler"], sampler["num_inference_steps"], sampler["guidance_scale"]) == ("distilled", 2, 1.0)
    assert (info["training"]["steps"], info["training"]["finished"]) == (6, True)
    assert info["training"]["started_from"]["weights_sha256"] == file_sha256(trained / "models/model.pt")
    model = mf.load(tuned / "models")
    images = model.sample("cardiomegaly", n=2, seed=1)
    torch.testing.assert_close(images[1:], model.sample(1, n=2, seed=1, batch_size=1)[1:])
    assert torch.equal(images, model.sample(1, n=2, seed=1, num_inference_steps=2))
    assert model.reconstruct(images).shape == images.shape


def test_training_logs_its_loss_and_draws_a_row_per_class(tuned):
    events = EventAccumulator(str(next((tuned / "runs/tensorboard").iterdir()))).Reload()
    assert {"tuning/loss", "tuning/lr", "tuning_val_loss"} <= set(events.Tags()["scalars"])
    assert len(list((tuned / "runs/pictures").glob("samples_*.png"))) == 2


def test_latents_of_phase_two_are_read_and_not_encoded_again(train, trained, tmp_path):
    latents = trained / "runs" / "latents"
    before = {path: path.stat().st_mtime_ns for path in latents.rglob("*.npy")}
    train(tmp_path, latents_dir=str(latents), tuning_steps=3)
    assert before
    assert {path: path.stat().st_mtime_ns for path in latents.rglob("*.npy")} == before


@pytest.mark.parametrize(("modality", "scale"), [("cxr", 2.0), ("fundus", 3.0), ("histo", 2.0)])
def test_bundle_learns_the_guidance_of_its_weights(modality, scale, bundle, tmp_path, monkeypatch):
    """The fundus weights bring a guide of their own."""
    guided, denoiser = [], few_step_target.autoguided_denoiser
    monkeypatch.setattr(
        few_step_target, "autoguided_denoiser", lambda *words: guided.append(words[-1]) or denoiser(*words)
    )
    prepare_phantoms(tmp_path / "data", num_images=20, size=32, modality=modality)
    configs = CONFIGS.parents[1] / f"medfusion_{modality}" / "configs"
    parsed = yaml.safe_load((configs / "train.yaml").read_text())
    start = save(tiny(parsed["class_names"], parsed["image_channels"], (32, 32)), tmp_path / "start" / "model.pt")
    if modality == "fundus":
        guide = tiny(parsed["class_names"], parsed["image_channels"], (32, 32))
        guide.unet.load_state_dict({name: 0.9 * value for name, value in guide.unet.state_dict().items()})
        start = write_guided(save(guide, tmp_path / "earlier" / "model.pt"), start, tmp_path / "guided", scale)
    own = {"autoencoder_channels": [8, 16], "unet_channels": [16, 16, 32], "latent_channels": 8}
    own |= {"tuning_steps": 2, "tuning_val_interval": 2, "pretrained_model": str(start.parent)}
    data = {"dataset_dir": str(tmp_path / "data"), **places(tmp_path)}
    bundle("train_few_steps", overlays=OVERLAYS, configs=configs, **(TINY | own | data))
    assert read_model_info(tmp_path / "models/model.pt")["sampler"]["guidance_scale"] == scale
    assert set(guided) == ({scale} if modality == "fundus" else set())
    samples = tmp_path / "samples"
    sampling = {"num_inference_steps": None, "num_samples": 1, "output_dir": str(samples)}
    bundle("inference", "inference.yaml", configs=configs, model_dir=str(tmp_path / "models"), **sampling)
    assert "distilled" in (samples / "manifest.csv").read_text()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"pretrained_model": "nowhere/model.pt"}, "there are no weights of phase two: run train_diffusion"),
        ({"pretrained_model": "null", "frozen": "null"}, "few steps need the weights of phase two"),
        ({"frozen": "encoder"}, "set frozen to autoencoder"),
        ({"num_inference_steps": 3}, "num_inference_steps must be one of 1, 2, 4, 8"),
        ({"tuning_teacher_steps": 0}, "tuning_teacher_steps must be a whole number of at least 1"),
        ({"sampler": "unipc"}, "sampler unipc: train_few_steps tunes for distilled"),
        ({"tuning_steps": 5}, "tuning_steps 5 is not a multiple of tuning_val_interval 3"),
        ({"tuning_lr": -1.0}, "lr must be"),
        ({"prediction_type": "epsilon"}, "does not fit this training"),
        ({"guidance_interval": [0.3, 3.0], "guidance_scale": 2.0}, "guidance_interval cannot be chosen"),
        ({"run_id": "train_diffusion"}, "few_steps.yaml trains a few-step UNet, which has no train_diffusion"),
    ],
)
def test_bad_setting_is_refused_before_the_first_step(train, tmp_path, overrides, said):
    assert said in refusal(train, tmp_path, **overrides)
    assert not (tmp_path / "runs" / "checkpoints" / "tuning_training.pt").exists()


def test_weights_that_cannot_be_tuned_are_refused(train, tuned, trained, tmp_path):
    unfinished = shutil.copytree(trained / "models", tmp_path / "unfinished")
    info = read_model_info(unfinished / "model.pt")
    assert info["training"]["finished"]
    write_model_info(unfinished / "model.pt", info | {"training": info["training"] | {"finished": False}})
    other = shutil.copytree(trained / "models", tmp_path / "other")
    write_model_info(other / "model.pt", info | {"class_names": ["a", "b"]})
    (tmp_path / "first").mkdir()
    shutil.copy(trained / "models/autoencoder.pt", tmp_path / "first")
    starts = {
        unfinished: "is of step 4 of a phase two that has not come to its end",
        other: "was trained for the classes a, b",
        tmp_path / "first": "there are no weights of phase two",
        save_gan(tmp_path / "gan" / "model.pt"): "are those of a GAN",
        tuned / "models": "are tuned for few steps",
    }
    for start, said in starts.items():
        assert said in refusal(train, tmp_path / "own", pretrained_model=str(start))


def test_weights_of_another_kind_are_not_replaced(bundle, train, tuned, trained, dataset_dir, tmp_path):
    models = shutil.copytree(trained / "models", tmp_path / "models")
    assert re.search("are the weights of a diffusion model, .* for few steps would replace", refusal(train, tmp_path))
    settings = {"dataset_dir": str(dataset_dir), **places(tuned)}
    assert re.search("are the weights of a model for few steps, .* choose", refusal(bundle, "training", **settings))
    assert "the training writes model.pt to" in refusal(train, tmp_path, pretrained_model=str(models))


@pytest.mark.parametrize(
    ("config", "overrides", "said"),
    [
        ("inference.yaml", {"guidance_scale": 2.0}, "guidance_scale 2.0: weights"),
        ("inference.yaml", {"sampler": "ddim"}, "tuned to sample in 2 steps by distilled with guidance_scale 1"),
        ("inference.yaml", {"guidance_interval": [0.1, 1.0]}, "leave this out, or choose the weights"),
        ("inference.yaml", {"num_inference_steps": 20}, "num_inference_steps 20: weights"),
        ("inference.yaml", {"num_inference_steps": 4}, "tuned to sample in 2 steps"),
        ("inference.yaml", {"eta": 1.0}, "which sampler 'distilled' does not support"),
        ("edit.yaml", {"edit": "classify", "images": "."}, "are tuned for few steps"),
        ("edit.yaml", {"edit": "counterfactual", "images": ".", "label": 1}, "are tuned for few steps"),
        ("evaluate.yaml", {"sweep_steps": [2, 20], "samples_dir": None}, "leave sweep_steps out"),
    ],
)
def test_what_few_steps_cannot_do_is_refused_at_once(bundle, tuned, dataset_dir, tmp_path, config, overrides, said):
    run_id = {"inference.yaml": "inference", "edit.yaml": "editing", "evaluate.yaml": "evaluating"}[config]
    own = {"num_inference_steps": None} if config == "inference.yaml" else {}
    own |= {"dataset_dir": str(dataset_dir)} if config == "evaluate.yaml" else {}
    own |= {"model_dir": str(tuned / "models"), "output_dir": str(tmp_path)}
    assert said in refusal(bundle, run_id, config, **(own | overrides))


def test_weights_for_few_steps_neither_edit_nor_guide_nor_train_on(bundle, tuned, trained, dataset_dir, tmp_path):
    model, images = mf.load(tuned / "models"), torch.rand(1, 1, 32, 32)
    calls = [lambda: variations(model, images, 1), lambda: classify(model, images), lambda: interpolate(model, 0, 1)]
    calls.append(lambda: mf.load(trained / "models").sample(0, guidance_scale=2.0, guidance_model=tuned / "models"))
    settings = {"dataset_dir": str(dataset_dir), "pretrained_model": str(tuned / "models"), **places(tmp_path)}
    calls.append(lambda: bundle("training", **settings))
    for call in calls:
        assert "are tuned for few steps" in refusal(call)
    assert "needs weights that are tuned" in refusal(mf.load(trained / "models").sample, 0, sampler="distilled")


def test_check_passes_and_states_memory_time_and_disk(dataset_dir, trained, tmp_path, capsys):
    tiny_networks = json.loads((trained / "models/model.json").read_text())["networks"]
    sizes = {"image_size": [32, 32], "unet_channels": tiny_networks["unet"]["channels"]}
    sizes |= {"autoencoder_channels": tiny_networks["autoencoder"]["channels"], "unet_embedding_channels": 32}
    own = sizes | {"unet_norm_groups": 8, "device": "cpu", "pretrained_model": str(trained / "models")}
    options = []
    for key, value in (TINY | own | places(tmp_path) | {"dataset_dir": str(dataset_dir)}).items():
        options += ["--set", f"{key}={json.dumps(value)}"]
    files = [str(CONFIGS / name) for name in ("train.yaml", *OVERLAYS)]
    code = main(["check", *files, "--run", "train_few_steps", *options])
    table = capsys.readouterr().out
    assert code == 0, table
    assert re.search(r"room: memory +ok +tuning [\d.]+ [MG]iB, about .* for 6 steps", table)
    assert "phase_two" in table
    assert not any(tmp_path.iterdir())
