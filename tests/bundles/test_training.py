import copy
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS
from PIL import Image

import medfusion_monai as mf
from medfusion_monai.cli import main
from medfusion_monai.runtime.errors import first_cause

CONFIGS = Path(__file__).parents[2] / "bundles" / "medfusion_cxr" / "configs"


def load(path):
    return torch.load(path, weights_only=True)


def same_weights(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def folders(folder):
    return {"model_dir": str(folder / "models"), "output_dir": str(folder / "runs")}


@pytest.fixture
def refused(bundle, tmp_path, dataset_dir):
    """Runs a training that must be refused and returns the message of the first cause."""

    def run(run_id="training", **overrides):
        places = {"dataset_dir": str(dataset_dir), "model_dir": str(tmp_path / "m"), "output_dir": str(tmp_path / "r")}
        with pytest.raises((RuntimeError, ValueError)) as caught:
            bundle(run_id, **(places | overrides))
        assert not list(tmp_path.glob("**/*.pt"))
        cause = first_cause(caught.value)
        assert isinstance(cause, ValueError)
        return str(cause)

    return run


@pytest.fixture
def own_data(dataset_dir, tmp_path):
    """A copy of the data that a test may spoil."""
    return Path(shutil.copytree(dataset_dir, tmp_path / "data"))


def test_training_writes_weights_checkpoints_pictures_and_scalars(trained):
    model = load(trained / "models" / "model.pt")
    assert {name.split(".")[0] for name in model} == {"autoencoder", "unet"}
    assert torch.all(model["autoencoder.latent_std"] > 0)
    assert not torch.equal(model["autoencoder.latent_std"], torch.ones(8))
    for picture in ("reconstructions_0000004.png", "samples_0000004.png"):
        assert Image.open(trained / "runs" / "pictures" / picture).size[0] > 100
    assert list((trained / "runs" / "tensorboard").glob("events*"))


def test_run_is_training_of_both_phases(bundle, trained, dataset_dir, tmp_path):
    places = {"model_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "runs")}
    bundle("run", dataset_dir=str(dataset_dir), **(places | {"device": "cpu"}))
    assert same_weights(load(tmp_path / "models" / "model.pt"), load(trained / "models" / "model.pt"))


def test_config_runs_from_a_foreign_folder_and_finds_its_bundle(dataset_dir, tmp_path, monkeypatch):
    configs = Path(shutil.copytree(CONFIGS, tmp_path / "elsewhere" / "configs"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for given in (str(configs), os.path.relpath(configs)):
        settings = {"dataset_dir": str(dataset_dir), "trial_step": False}  # which takes minutes at full size
        workflow = ConfigWorkflow(config_file=f"{given}/train.yaml", workflow_type="train", **settings)
        workflow.initialize()
        assert workflow.bundle_root == str(tmp_path / "elsewhere")
        assert (tmp_path / "elsewhere" / "models").is_dir()
    assert not any((tmp_path / "work").iterdir())


def test_phase_two_keeps_the_autoencoder_of_phase_one(trained):
    model = load(trained / "models" / "model.pt")
    autoencoder = load(trained / "models" / "autoencoder.pt")
    assert same_weights(autoencoder, {n[12:]: v for n, v in model.items() if n.startswith("autoencoder.")})


def test_averaged_weights_are_saved_not_the_raw_ones(trained):
    state = load(trained / "runs" / "checkpoints" / "diffusion_training.pt")["objects"]
    model = load(trained / "models" / "model.pt")
    model = {name[5:]: value for name, value in model.items() if name.startswith("unet.")}
    assert same_weights(model, state["ema"]["module"])
    assert not same_weights(model, state["network"])


def test_required_properties_are_all_there(dataset_dir, tmp_path):
    places = {"dataset_dir": str(dataset_dir), "output_dir": str(tmp_path / "r"), "model_dir": str(tmp_path / "m")}
    places |= {"trial_step": False}  # it takes minutes at full size
    for kind, file, overrides in (("train", "train", places), ("infer", "inference", {"output_dir": str(tmp_path)})):
        workflow = ConfigWorkflow(config_file=str(CONFIGS / f"{file}.yaml"), workflow_type=kind, **overrides)
        workflow.initialize()
        assert workflow.check_properties() == []


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("phase", ["autoencoder", "diffusion"])
def test_killed_training_ends_as_if_it_had_not_been(phase, bundle, trained, dataset_dir, tmp_path):
    if phase == "diffusion":
        shutil.copytree(trained / "models", tmp_path / "models", ignore=lambda *_: ["model.pt"])
    arguments = {"dataset_dir": dataset_dir, "model_dir": tmp_path / "models", "output_dir": tmp_path / "runs"}
    settings = {name: str(value) for name, value in arguments.items()} | {"check_files": False}
    # Many more steps than wanted: the kill comes in the middle on any machine.
    endless = {f"{phase}_steps": 100000, f"{phase}_lr_decay": "constant"}
    checkpoint = tmp_path / "runs" / "checkpoints" / f"{phase}_training.pt"

    def train():
        torch.set_num_threads(1)  # a forked process has none of its parent's threads
        bundle(f"train_{phase}", **settings | endless)

    process = multiprocessing.get_context("fork").Process(target=train, daemon=True)
    process.start()
    deadline = time.monotonic() + 120
    while not checkpoint.is_file() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    done = load(checkpoint)["iteration"]
    steps = {f"{phase}_steps": done + 4, f"{phase}_lr_decay": "constant"}

    bundle(f"train_{phase}", **settings, **steps)
    unbroken = tmp_path / "unbroken"
    shutil.copytree(tmp_path / "models", unbroken / "models")
    bundle(f"train_{phase}", **settings | {"output_dir": str(unbroken), "model_dir": str(unbroken / "models")}, **steps)
    ours, theirs = load(checkpoint), load(unbroken / "checkpoints" / checkpoint.name)
    assert ours["iteration"] == theirs["iteration"] == done + 4
    assert same_weights(ours["objects"]["network"], theirs["objects"]["network"])
    assert ours["objects"]["best"] == theirs["objects"]["best"]
    if phase == "diffusion":
        assert same_weights(ours["objects"]["ema"]["module"], theirs["objects"]["ema"]["module"])


def test_trainer_that_is_run_again_after_its_end_changes_nothing(dataset_dir, tmp_path, bundle):
    places = {"model_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "runs")}
    tiny = sys.modules[bundle.__module__].TINY | {"trial_step": False, "dataset_dir": str(dataset_dir)}
    files = [str(CONFIGS / "train.yaml"), str(CONFIGS / "demo.yaml")]
    workflow = ConfigWorkflow(files, workflow_type="train", run_id="training", **(tiny | places))
    workflow.initialize()
    workflow.run()
    before = load(tmp_path / "models" / "model.pt")
    workflow.run()
    workflow.finalize()
    assert workflow.trainer.state.iteration == 4
    assert same_weights(load(tmp_path / "models" / "model.pt"), before)


@pytest.mark.parametrize("config", ["train.yaml", "inference.yaml", "evaluate.yaml"])
def test_configs_take_the_handlers_of_experiment_tracking(config):
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / config))
    settings = copy.deepcopy(DEFAULT_EXP_MGMT_SETTINGS["mlflow"])
    settings["configs"]["save_execute_config"] = False
    ConfigWorkflow.patch_bundle_tracking(parser, settings)
    engines = {"train.yaml": "train#handlers", "inference.yaml": "handlers", "evaluate.yaml": "handlers"}
    assert "MLFlowHandler" in str(parser[engines[config]])


def test_handlers_of_the_user_reach_trainer_and_evaluator(bundle, dataset_dir, tmp_path, capsys):
    places = {"model_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "runs")}
    handlers = {name: [{"_target_": "StatsHandler", "name": name}] for name in ("train#handlers", "validate#handlers")}
    transform = "$monai.handlers.from_engine(['loss'], first=True)"  # as MONAI's experiment tracking takes it
    handlers["train#handlers"][0]["output_transform"] = transform
    handlers["validate#handlers"][0]["iteration_log"] = False
    bundle("training", dataset_dir=str(dataset_dir), **handlers, **places)
    said = capsys.readouterr().out
    assert "diffusion_val_loss" in said
    assert "Iter: 2/2" in said


def test_finished_training_is_not_trained_again(bundle, trained, dataset_dir, tmp_path):
    shutil.copytree(trained, tmp_path / "again")
    before = load(tmp_path / "again" / "models" / "model.pt")
    places = {"model_dir": str(tmp_path / "again" / "models"), "output_dir": str(tmp_path / "again" / "runs")}
    bundle("training", dataset_dir=str(dataset_dir), **places)
    assert same_weights(before, load(tmp_path / "again" / "models" / "model.pt"))


def test_checkpoint_of_other_data_is_refused(bundle, trained, own_data, tmp_path):
    shutil.copytree(trained, tmp_path / "again")
    datalist = json.loads((own_data / "datalist.json").read_text())
    datalist["training"].pop()
    (own_data / "datalist.json").write_text(json.dumps(datalist))
    places = {"model_dir": str(tmp_path / "again" / "models"), "output_dir": str(tmp_path / "again" / "runs")}
    with pytest.raises(RuntimeError) as caught:
        bundle("train_autoencoder", dataset_dir=str(own_data), **places)
    assert "training_images" in str(first_cause(caught.value))


def test_folder_without_datalist_is_refused(refused, tmp_path):
    assert "medfusion prepare" in refused(dataset_dir=str(tmp_path))


def test_missing_image_is_named(refused, own_data):
    item = json.loads((own_data / "datalist.json").read_text())["training"][3]["image"]
    (own_data / item).unlink()
    assert Path(item).name in refused(dataset_dir=str(own_data))


@pytest.mark.parametrize("spoil", ["truncated", "text"])
def test_damaged_image_is_named_before_the_first_step(spoil, refused, own_data):
    item = own_data / json.loads((own_data / "datalist.json").read_text())["training"][3]["image"]
    item.write_bytes(item.read_bytes()[:200] if spoil == "truncated" else b"no image at all")
    assert item.name in refused(dataset_dir=str(own_data))


def test_label_outside_the_class_names_is_named(refused, own_data):
    datalist = json.loads((own_data / "datalist.json").read_text())
    datalist["training"][5]["label"] = 7
    (own_data / "datalist.json").write_text(json.dumps(datalist))
    message = refused(dataset_dir=str(own_data))
    assert "training[5]" in message
    assert "7" in message


def test_other_class_names_are_refused(refused):
    assert "sick" in refused(class_names=["well", "sick"])


@pytest.mark.parametrize("size", [[36, 32], [32], [0, 32], [32.0, 32], 32])
def test_size_that_the_autoencoder_cannot_halve_three_times_is_refused(size, refused):
    assert "multiples of 8" in refused(image_size=size)


def test_other_channels_than_the_files_are_refused(refused):
    message = refused(image_channels=3)
    assert "1 channel" in message
    assert ".png" in message


def test_phase_two_without_phase_one_is_refused(refused):
    assert "train_autoencoder" in refused("train_diffusion")


def test_autoencoder_of_another_architecture_is_refused(bundle, trained, dataset_dir, tmp_path):
    places = {"model_dir": str(trained / "models"), "output_dir": str(tmp_path)}
    with pytest.raises(RuntimeError) as caught:
        bundle("train_diffusion", dataset_dir=str(dataset_dir), autoencoder_channels=[8, 8, 16, 32], **places)
    assert "demo.yaml" in str(first_cause(caught.value))


def test_cached_posteriors_with_augmentation_are_refused(refused):
    flip = [{"_target_": "RandFlipd", "keys": "image"}]
    assert "cache_latents" in refused(random_transforms=flip, cache_latents=True)


def test_unknown_flip_is_refused(refused):
    assert "horizontal" in refused(latent_flips=["sideways"])


def test_folder_that_cannot_be_written_is_refused(refused, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in refused(output_dir=str(tmp_path / "file" / "runs"))


def test_missing_perceptual_weights_are_named(refused):
    assert "vgg16-397923af.pth" in refused(perceptual_weights_file="/nowhere/vgg16.pth", perceptual_weight=1.0)
    assert "perceptual_weight is 0" in refused(perceptual_weights_file="/nowhere/vgg16.pth")  # in demo.yaml


def test_last_line_of_a_failed_command_states_what_to_do(tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", str(CONFIGS / "train.yaml")]
    command += ["--dataset_dir", str(tmp_path), "--model_dir", str(tmp_path), "--output_dir", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("medfusion: error: ")
    assert "medfusion prepare" in last


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        ({"num_inference_steps": 1001}, "num_inference_steps"),
        ({"label_dropout": 1.5}, "label_dropout"),
        ({"prediction_type": "eps"}, "v_prediction"),
        ({"diffusion_lr_decay": "x"}, "decay"),
        ({"unet_norm_groups": 7}, "norm_groups"),
        ({"diffusion_batch_size": 0}, "batch_size"),
        ({"diffusion_steps": 5}, "diffusion_val_interval"),
        ({"diffusion_steps": 0}, "diffusion_steps"),
        ({"autoencoder_steps": "many"}, "autoencoder_steps"),
        ({"adversarial_start": "never"}, "start_step"),
        ({"resume": "perhaps"}, "resume"),
        ({"class_names": ["a", "a"]}, "class_names"),
        ({"image_channels": 2}, "image_channels"),
        ({"val_interval": 3}, "val_interval 3 does not divide the 2 epochs of autoencoder_steps 4"),
        ({"val_interval": 2, "diffusion_steps": 6}, "3 epochs of diffusion_steps 6"),
        ({"autoencoder_lr": float("nan")}, "lr must be a finite number of at least 0, received nan"),
        ({"diffusion_lr": -1.0e-4}, "lr must be a finite number of at least 0, received -0.0001"),
        ({"diffusion_lr_warmup": 1.5}, "warmup_steps must be a whole number"),
        ({"discriminator_lr": -1}, "discriminator_lr must be a finite number of at least 0, received -1"),
        ({"kl_weight": -1}, "kl_weight must be a finite number of at least 0, received -1"),
        ({"unet_norm_groups": 0}, "norm_groups must be a whole number of at least 1, received 0"),
        ({"max_grad_norm": float("nan")}, "max_norm must be a finite number above 0, received nan"),
        ({"log_interval": -5}, "log_interval must be a whole number of at least 1, received -5"),
        ({"val_images": 0}, "val_images must be a whole number of at least 1"),
        ({"diffusion_batch_size": 2.5}, "diffusion_batch_size must be a whole number"),
        ({"seed": "first"}, "seed must be a whole number of at least 0, received 'first'"),
    ],
)
def test_bad_setting_of_either_phase_is_refused_before_phase_one(overrides, word, refused):
    assert word in refused(**overrides)


def test_wrong_dataset_dir_leaves_nothing_behind(refused, tmp_path):
    refused(dataset_dir=str(tmp_path / "nowhere"))
    assert not any(tmp_path.iterdir())


def test_false_on_the_command_line_starts_from_scratch(bundle, trained, dataset_dir, tmp_path):
    shutil.copytree(trained, tmp_path / "again")
    checkpoint = tmp_path / "again" / "runs" / "checkpoints" / "autoencoder_training.pt"
    checkpoint.write_bytes(b"damaged")
    checkpoint.with_name("autoencoder_training.previous.pt").unlink()
    places = {"model_dir": str(tmp_path / "again" / "models"), "output_dir": str(tmp_path / "again" / "runs")}
    with pytest.raises(RuntimeError, match="Failed to evaluate"):
        bundle("train_autoencoder", dataset_dir=str(dataset_dir), **places)
    bundle("train_autoencoder", dataset_dir=str(dataset_dir), resume="false", **places)
    assert load(checkpoint)["iteration"] == 4


BRIGHTER = {"_target_": "RandAdjustContrastd", "keys": "image", "prob": 0.5}
CHANGED = [
    ("train_autoencoder", {"seed": 1}, "seed"),
    ("train_autoencoder", {"val_images": 2}, "val_images"),
    ("train_autoencoder", {"class_shares": "equal"}, "class_shares"),
    ("train_autoencoder", {"resize_mode": "pad"}, "resize_mode"),
    ("train_autoencoder", {"unreadable": "skip"}, "unreadable"),
    ("train_autoencoder", {"random_transforms": [BRIGHTER]}, "RandAdjustContrastd"),
    ("train_autoencoder", {"autoencoder_val_interval": 4}, "val_interval"),
    ("train_autoencoder", {"autoencoder#norm_groups": 4}, "autoencoder.norm_groups"),
    ("train_autoencoder", {"pixel_loss": "mse"}, "loss.pixel_loss"),
    ("train_autoencoder", {"kl_weight": 1.0e-3}, "loss.kl_weight"),
    ("train_autoencoder", {"ssim_window": 9}, "loss.ssim_window"),
    ("train_autoencoder", {"adversarial_start": 1}, "adversarial.start_step"),
    ("train_autoencoder", {"autoencoder_training#adversarial#weight": 0.5}, "adversarial.weight"),
    ("train_diffusion", {"latent_flips": ["horizontal"]}, "latent_flips"),
    ("train_diffusion", {"cache_latents": False}, "cache_latents"),
    ("train_diffusion", {"diffusion_val_interval": 4}, "val_interval"),
    ("train_diffusion", {"unet_norm_groups": 4}, "unet.norm_groups"),
    ("train_diffusion", {"noise_schedule": "linear"}, "schedule.schedule"),
    ("train_diffusion", {"zero_terminal_snr": True}, "schedule.zero_terminal_snr"),
    ("train_diffusion", {"diffusion_loss": "l2"}, "loss.loss"),
    ("train_diffusion", {"loss_weighting": "min_snr"}, "loss.weighting"),
    ("train_diffusion", {"label_dropout": 0.1}, "label_dropout"),
]


@pytest.mark.parametrize(("run_id", "change", "name"), CHANGED)
def test_training_does_not_resume_with_another_setting_that_changes_its_result(
    run_id, change, name, bundle, trained, dataset_dir, tmp_path
):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    before = load(tmp_path / "models" / "model.pt")
    with pytest.raises(RuntimeError) as caught:
        bundle(run_id, dataset_dir=str(dataset_dir), **folders(tmp_path), **change)
    changes, _, may_change = str(first_cause(caught.value)).partition(". Only ")
    assert "belongs to another run: " in changes
    assert name in changes.partition("belongs to another run: ")[2]
    assert "lr, " in may_change
    assert same_weights(before, load(tmp_path / "models" / "model.pt"))


def test_training_resumes_with_another_learning_rate_and_more_steps(bundle, trained, dataset_dir, tmp_path, capfd):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    rates = {"autoencoder_lr": 5.0e-5, "autoencoder_steps": 6, "max_grad_norm": 0.5}
    bundle("train_autoencoder", dataset_dir=str(dataset_dir), **folders(tmp_path), **rates)
    log = "".join(capfd.readouterr())
    assert load(tmp_path / "runs" / "checkpoints" / "autoencoder_training.pt")["iteration"] == 6
    for words in ("lr was 0.001, now it is 5e-05", "steps was 4, now it is 6", "max_grad_norm was 1.0, now it is 0.5"):
        assert words in log


def test_diffusion_does_not_resume_with_another_autoencoder(bundle, trained, dataset_dir, tmp_path):
    shutil.copytree(trained, tmp_path / "again")
    places = {"model_dir": str(tmp_path / "again" / "models"), "output_dir": str(tmp_path / "again" / "runs")}
    model = load(tmp_path / "again" / "models" / "model.pt")
    with pytest.raises(RuntimeError) as caught:
        bundle("training", dataset_dir=str(dataset_dir), autoencoder_steps=8, diffusion_steps=8, **places)
    assert "autoencoder" in str(first_cause(caught.value))
    assert same_weights(model, load(tmp_path / "again" / "models" / "model.pt"))
    with pytest.raises(RuntimeError) as caught:
        bundle("train_diffusion", dataset_dir=str(dataset_dir), prediction_type="sample", **places)
    assert "schedule.prediction_type was" in str(first_cause(caught.value))


def test_lost_weights_of_a_finished_training_are_reported(bundle, trained, dataset_dir, tmp_path):
    shutil.copytree(trained, tmp_path / "again")
    (tmp_path / "again" / "models" / "model.pt").unlink()
    places = {"model_dir": str(tmp_path / "again" / "models"), "output_dir": str(tmp_path / "again" / "runs")}
    with pytest.raises(RuntimeError) as caught:
        bundle("training", dataset_dir=str(dataset_dir), **places)
    assert "model.pt" in str(first_cause(caught.value))


def test_autoencoder_of_another_depth_gives_images_of_the_right_size(bundle, dataset_dir, tmp_path):
    places = {"model_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "runs")}
    networks = {"autoencoder_channels": [8, 8, 16], "image_size": [24, 36]}
    bundle("training", dataset_dir=str(dataset_dir), ssim_window=7, **networks, **places)
    places["output_dir"] = str(tmp_path / "samples")
    bundle("inference", "inference.yaml", num_samples=1, label=0, **networks, **places)
    assert Image.open(next((tmp_path / "samples").glob("*.png"))).size == (36, 24)


@pytest.fixture
def rare_data(own_data):
    """Data with two images of the second class for training."""
    datalist = json.loads((own_data / "datalist.json").read_text())
    rare = [item for item in datalist["training"] if item["label"] == 1]
    datalist["training"] = [item for item in datalist["training"] if item not in rare[2:]]
    (own_data / "datalist.json").write_text(json.dumps(datalist))
    return own_data


def parsed(tmp_path, data, **overrides):
    places = {"model_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "runs"), "dataset_dir": str(data)}
    files = [str(CONFIGS / "train.yaml"), str(CONFIGS / "demo.yaml")]
    settings = {"image_size": [32, 32], "device": "$torch.device('cpu')", "cache_latents": False}
    workflow = ConfigWorkflow(config_file=files, workflow_type="train", **(places | settings | overrides))
    workflow.initialize()
    return workflow.parser.get_parsed_content


def labels_of(stream, count):
    return [int(stream[position]["label"]) for position in range(count)]


def test_equal_shares_reach_both_phases_and_leave_validation_as_it_is(rare_data, tmp_path):
    get = parsed(tmp_path, rare_data, class_shares="equal")
    dataset, val_dataset, images = get("train#dataset"), get("validate#dataset"), get("images")
    for stream in (dataset.image_stream(0, images.shares), dataset.stream(0, images.shares)):
        assert abs(2 * sum(labels_of(stream, 2 * len(stream))) - 2 * len(stream)) <= 2
    for stream in (val_dataset.image_stream(0, shuffle=False), val_dataset.stream(0, shuffle=False)):
        assert labels_of(stream, len(images.validation)) == [item["label"] for item in images.validation]
    once = dataset.images
    assert [once[index]["label"] for index in range(len(once))] == [item["label"] for item in images.training]


def test_shares_of_cached_latents_are_those_of_the_images(rare_data, tmp_path):
    get = parsed(tmp_path, rare_data, class_shares=[0.25, 0.75], cache_latents=True)
    dataset, shares = get("train#dataset"), get("images").shares
    dataset.prepare("cpu")
    cached, images = dataset.stream(0, shares), dataset.image_stream(0, shares)
    assert set(cached[0]) == {"moments", "label", "seed"}
    assert labels_of(cached, 20) == labels_of(images, 20)


def test_training_resumes_only_with_the_same_shares(bundle, rare_data, tmp_path):
    places = {"model_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "runs")}
    places |= {"dataset_dir": str(rare_data)}
    bundle("train_autoencoder", class_shares="equal", autoencoder_steps=2, **places)
    for shares in ([0.9, 0.1], None):
        with pytest.raises(RuntimeError) as caught:
            bundle("train_autoencoder", **{"class_shares": shares} if shares else {}, **places)
        assert 'class_shares was "equal", now it is' in str(first_cause(caught.value))
    bundle("train_autoencoder", class_shares="equal", **places)
    assert load(tmp_path / "runs" / "checkpoints" / "autoencoder_training.pt")["iteration"] == 4


def test_class_with_a_share_but_no_images_is_refused(refused, own_data):
    datalist = json.loads((own_data / "datalist.json").read_text())
    datalist["training"] = [item for item in datalist["training"] if item["label"] == 0]
    (own_data / "datalist.json").write_text(json.dumps(datalist))
    assert "['cardiomegaly']" in refused(dataset_dir=str(own_data), class_shares="equal")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"class_shares": "even"}, "'even'"),
        ({"class_shares": [0.2, 0.3, 0.5]}, "3 shares"),
        ({"class_shares": [0.5, 0.6]}, "sum to 1"),
        ({"unreadable": "ignore"}, "'ignore'"),
    ],
)
def test_unknown_shares_and_policies_are_refused_before_the_files_are_read(overrides, words, refused, own_data):
    item = json.loads((own_data / "datalist.json").read_text())["training"][3]["image"]
    (own_data / item).write_bytes(b"no image at all")
    assert words in refused(dataset_dir=str(own_data), **overrides)


def test_weights_come_with_the_facts_of_their_training(trained, dataset_dir):
    text = (trained / "models" / "model.json").read_text()
    info, datalist = json.loads(text), json.loads((dataset_dir / "datalist.json").read_text())
    labels = [item["label"] for item in datalist["training"]]
    assert info["class_names"] == ["no_cardiomegaly", "cardiomegaly"]
    assert info["class_shares"] == [labels.count(0) / len(labels), labels.count(1) / len(labels)]
    assert (info["image"]["size"], info["image"]["channels"]) == ([32, 32], 1)
    assert info["networks"]["autoencoder"]["latent_channels"] == 8
    assert info["networks"]["unet"]["norm_groups"] == 8
    assert info["schedule"]["prediction_type"] == "v_prediction"
    assert info["sampler"]["num_inference_steps"] == 3
    assert (info["training"]["image_count"], info["training"]["steps"]) == (len(labels), 4)
    assert "/" not in text
    assert not any(item["patient"] in text for item in datalist["training"])


def test_refused_training_leaves_the_description_of_the_weights(bundle, trained, dataset_dir, tmp_path):
    shutil.copytree(trained, tmp_path / "again")
    places = {"model_dir": str(tmp_path / "again" / "models"), "output_dir": str(tmp_path / "again" / "runs")}
    with pytest.raises(RuntimeError, match="Failed to evaluate"):
        bundle("train_diffusion", dataset_dir=str(dataset_dir), prediction_type="sample", **places)
    info = (tmp_path / "again" / "models" / "model.json").read_text()
    assert info == (trained / "models" / "model.json").read_text()


@pytest.fixture
def spoilt_data(own_data):
    """Data with one broken file for training and one for validation, and their names."""
    datalist = json.loads((own_data / "datalist.json").read_text())
    names = [datalist[split][0]["image"] for split in ("training", "validation")]
    for name in names:
        (own_data / name).write_bytes(b"no image at all")
    return own_data, [Path(name).name for name in names]


@pytest.mark.parametrize("check_files", [True, False])
@pytest.mark.parametrize("cache_num", [0, 5000])
def test_training_skips_broken_files(check_files, cache_num, bundle, spoilt_data, tmp_path, capsys):
    data, names = spoilt_data
    places = {"model_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "runs")}
    settings = {"unreadable": "skip", "check_files": check_files, "cache_num": cache_num}
    bundle("training", dataset_dir=str(data), cache_latents=not cache_num, **settings, **places)
    assert (tmp_path / "models" / "model.pt").is_file()
    warnings = capsys.readouterr().out
    # Latents are encoded from files read again: each phase finds a bad file by itself.
    assert [warnings.count(name) for name in names] == [1 if check_files or cache_num else 2] * 2
    assert ("2 of " in warnings) == check_files


def test_file_that_is_broken_when_a_step_reads_it_stops_the_training(refused, spoilt_data):
    data, names = spoilt_data
    message = refused(dataset_dir=str(data), check_files=False, cache_num=0)
    assert names[0] in message or names[1] in message
    assert "is not an image" in message


def test_class_that_loses_all_its_files_is_named(refused, rare_data):
    datalist = json.loads((rare_data / "datalist.json").read_text())
    for item in datalist["training"]:
        if item["label"] == 1:
            (rare_data / item["image"]).write_bytes(b"no image at all")
    assert "['cardiomegaly']" in refused(dataset_dir=str(rare_data), unreadable="skip")


@pytest.fixture(scope="module")
def with_snapshots(bundle, trained, dataset_dir, tmp_path_factory):
    """A folder with a second training of phase two, which stored snapshots of its averages."""
    folder = tmp_path_factory.mktemp("snapshots")
    shutil.copytree(trained / "models", folder / "models", ignore=lambda *_: ["model.pt", "model.json"])
    bundle("train_diffusion", dataset_dir=str(dataset_dir), average_snapshots=4, **folders(folder))
    return folder


def test_snapshots_of_averages_change_nothing_else(with_snapshots, trained):
    for name in ("model.pt", "model.json"):
        assert (with_snapshots / "models" / name).read_bytes() == (trained / "models" / name).read_bytes()
    assert not (trained / "runs" / "checkpoints" / "averages").exists()


def test_average_of_an_earlier_step_is_written_and_guides_the_model(with_snapshots, bundle, tmp_path, capsys):
    snapshots, output = with_snapshots / "runs" / "checkpoints" / "averages", tmp_path / "earlier"
    assert sorted(path.name for path in snapshots.iterdir()) == ["2.pt", "4.pt"]
    arguments = ["--snapshots", str(snapshots), "--length", "0.08", "--step", "2", "--output", str(output)]
    assert main(["average", *arguments]) == 0
    assert str(output / "model.pt") in capsys.readouterr().out
    model = mf.load(output, "cpu")
    assert (model.info["training"]["steps"], model.info["training"]["average"]) == (2, 0.08)
    assert model.sample(0, num_inference_steps=2).isfinite().all()
    places = {"model_dir": str(with_snapshots / "models"), "output_dir": str(tmp_path / "samples")}
    bundle("inference", "inference.yaml", num_samples=1, guidance_scale=2.0, guidance_model=str(output), **places)
    assert len(list((tmp_path / "samples").glob("*.png"))) == 2


def test_training_with_snapshots_resumes_as_if_it_had_not_stopped(with_snapshots, bundle, dataset_dir, tmp_path):
    shutil.copytree(with_snapshots / "models", tmp_path / "models", ignore=lambda *_: ["model.pt", "model.json"])
    settings = {"dataset_dir": str(dataset_dir), "average_snapshots": 4, **folders(tmp_path)}
    for steps in (2, 4):
        bundle("train_diffusion", **settings, diffusion_steps=steps, diffusion_lr_decay="constant")
    unbroken = folders(tmp_path) | {"output_dir": str(tmp_path / "unbroken")}
    bundle("train_diffusion", **settings | unbroken, diffusion_lr_decay="constant")
    places = [tmp_path / run / "checkpoints" / "averages" / "4.pt" for run in ("runs", "unbroken")]
    ours, theirs = (load(place)["averages"] for place in places)
    assert all(same_weights(ours[length], theirs[length]) for length in ours)


def test_snapshots_cannot_begin_in_the_middle_of_a_training(bundle, trained, dataset_dir, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    with pytest.raises(RuntimeError) as caught:
        bundle("train_diffusion", dataset_dir=str(dataset_dir), average_snapshots=4, **folders(tmp_path / "copy"))
    assert "average_snapshots was not set, now it is true" in str(first_cause(caught.value))


@pytest.mark.parametrize("count", [1, 2.5, True, "all"])
def test_number_of_snapshots_that_makes_no_sense_is_refused(count, bundle, dataset_dir, tmp_path):
    with pytest.raises(RuntimeError) as caught:
        bundle("train_diffusion", dataset_dir=str(dataset_dir), average_snapshots=count, **folders(tmp_path))
    assert "average_snapshots must be a whole number of at least 2" in str(first_cause(caught.value))
