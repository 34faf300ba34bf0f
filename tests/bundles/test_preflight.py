"""What is checked before a training, by the config itself and by `medfusion check`."""

import json
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from medfusion_monai.cli import main
from medfusion_monai.runtime.errors import first_cause
from medfusion_monai.training.preflight import disk, training_checks
from medfusion_monai.training.preflight import trial_step as memory
from medfusion_monai.training.preflight.run_checks import PreflightError

CONFIGS = Path(__file__).parents[2] / "bundles" / "medfusion_cxr" / "configs"


@pytest.fixture
def settings(bundle, dataset_dir, tmp_path):
    places = {"dataset_dir": str(dataset_dir), "model_dir": str(tmp_path / "m"), "output_dir": str(tmp_path / "r")}
    return sys.modules[bundle.__module__].TINY | places | {"trial_step": True}


@pytest.fixture
def check(settings, capsys):
    """Runs `medfusion check` with the demo's configs; gives its exit code, standard output and error."""

    def run(*options, **overrides):
        options = list(options)
        for key, value in (settings | overrides).items():
            options += ["--set", f"{key}={json.dumps(value)}"]
        code = main(["check", str(CONFIGS / "train.yaml"), str(CONFIGS / "demo.yaml"), *options])
        return code, *capsys.readouterr()

    return run


def row(table, name):
    (line,) = [line for line in table.splitlines() if line.startswith(f"{name} ")]
    return line.removeprefix(name).split(maxsplit=1)


def test_good_config_passes_all_checks_and_nothing_is_written(check, tmp_path):
    code, table, _ = check()
    assert code == 0, table
    assert table.endswith("checks, no problems\n")
    assert row(table, "data: labels")[1].startswith("training 16 no_cardiomegaly, 16 cardiomegaly; validation 2 ")
    assert row(table, "data: sample")[1].startswith("32 of 36 read, 32x32")
    assert row(table, "machine: device")[1].startswith("cpu, ")
    assert "autoencoder " in row(table, "room: memory")[1]
    assert "will write" in row(table, "room: disk")[1]
    assert not any(tmp_path.iterdir())


def test_contact_sheet_shows_the_sample_at_the_size_of_the_training(check, tmp_path):
    code, table, _ = check("--contact-sheet", str(tmp_path / "sheet.png"))
    assert code == 0, table
    assert "brightness 0." in row(table, "data: sample")[1]
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * 34, 3 * 34)


def test_all_problems_are_in_one_table_and_listed(check):
    code, table, _ = check(dataset_dir="/nowhere", image_size=[30, 32], diffusion_steps=5, device="cuda:9")
    assert code == 2
    for name, number in {"machine: device": 1, "settings: image_size": 2, "settings: diffusion_steps": 3}.items():
        assert row(table, name) == ["problem", f"see {number}"]
    assert row(table, "data: training") == row(table, "data: validation") == ["problem", "see 4"]
    for name in ("networks: networks", "room: memory"):
        assert " ".join(row(table, name)).split() == ["left", "out", "after", "the", "problems", "above"]
    listed = [line for line in table.splitlines() if line[:2] in ("1.", "2.", "3.", "4.")]
    assert all(word in line for word, line in zip(["cuda:9", "[30, 32]", "Use", "/nowhere"], listed, strict=True))
    assert table.endswith("checks, 4 problems\n")


def test_unreadable_image_is_found_in_the_sample(check, dataset_dir, tmp_path):
    data = Path(shutil.copytree(dataset_dir, tmp_path / "data"))
    first = data / json.loads((data / "datalist.json").read_text())["training"][0]["image"]
    first.write_bytes(b"no image")
    code, table, _ = check(dataset_dir=str(data))
    assert code == 2
    assert first.name in table


def test_place_of_latents_that_cannot_be_written_is_found(check, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, table, _ = check(latents_dir=str(tmp_path / "file"))
    assert code == 2
    assert row(table, "data: latents")[0] == "problem"
    assert str(tmp_path / "file") in table


def test_mistyped_key_is_named_with_the_nearest(check):
    code, _, error = check(difusion_steps=3)
    assert code == 2
    assert "difusion_steps (near: diffusion_steps" in error


def test_reference_to_nothing_is_told(check):
    code, table, _ = check(ckpt_dir="$@outputdir + '/c'")
    assert code == 2
    assert "ckpt_dir refers to @outputdir (near: output_dir" in table


def test_phase_two_alone_needs_its_autoencoder(check, settings):
    code, table, _ = check("--run", "train_diffusion")
    assert code == 2
    assert row(table, "networks: autoencoder_file")[0] == "problem"
    assert "phase two needs phase one" in table


def test_run_that_the_config_does_not_have_is_refused(check):
    code, _, error = check("--run", "sampling")
    assert code == 2
    assert "there is no 'sampling' to run" in error


@pytest.mark.parametrize(("config", "run"), [("inference.yaml", "inference"), ("evaluate.yaml", "evaluating")])
def test_check_of_another_config_writes_and_samples_nothing(config, run, trained, dataset_dir, tmp_path, capsys):
    settings = {"model_dir": str(trained / "models"), "output_dir": str(tmp_path / "out"), "device": "cpu"}
    settings |= {"dataset_dir": str(dataset_dir), "samples_dir": None} if run == "evaluating" else {}
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    handlers = [signal.getsignal(signal.SIGTERM), sys.excepthook]
    assert main(["check", str(CONFIGS / config), "--run", run, *options]) == 0, capsys.readouterr().out
    assert "no problems" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())
    assert [signal.getsignal(signal.SIGTERM), sys.excepthook] == handlers


def problem(bundle, settings, **overrides):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        bundle("train_autoencoder", **(settings | overrides))
    return first_cause(caught.value)


def test_training_tells_all_problems_before_the_first_step(bundle, settings, tmp_path):
    error = problem(bundle, settings, dataset_dir="/nowhere", diffusion_steps=5, seed="first")
    assert isinstance(error, PreflightError)
    assert str(error).startswith("3 problems:\n1. diffusion_steps 5 is not a multiple")
    assert "\n2. seed must be" in str(error)
    assert "\n3. dataset_dir '/nowhere'" in str(error)
    assert not any(tmp_path.iterdir())


def test_step_that_does_not_fit_is_refused_before_the_first(bundle, settings, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "available_memory", lambda device: -(2**62))
    error = problem(bundle, settings)
    assert isinstance(error, ValueError)
    assert "autoencoder_batch_size 4: a step needs" in str(error)
    assert "diffusion_batch_size 4: a step needs" in str(error)
    assert not any(tmp_path.iterdir())


def test_disk_that_is_too_small_is_refused_before_the_first_step(bundle, settings, monkeypatch, tmp_path):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    assert "make room" in str(problem(bundle, settings))
    assert not any(tmp_path.iterdir())


def test_trial_step_changes_nothing_of_the_training(bundle, settings, tmp_path, monkeypatch):
    tried, ends, states = [], [], []
    try_step, check_memory = memory.try_step, memory.check_memory

    def watched(trainers):
        states.append(torch.random.get_rng_state())
        words = check_memory(trainers)
        states.append(torch.random.get_rng_state())
        return words

    monkeypatch.setattr(memory, "try_step", lambda *arguments: tried.append(arguments[0].phase) or try_step(*arguments))
    monkeypatch.setattr(training_checks, "check_memory", watched)
    for trial in (True, False):
        places = {"model_dir": str(tmp_path / f"{trial}"), "output_dir": str(tmp_path / f"{trial}")}
        bundle("train_autoencoder", **(settings | places | {"trial_step": trial, "adversarial_start": 1}))
        ends.append(torch.load(tmp_path / f"{trial}" / "checkpoints" / "autoencoder_training.pt", weights_only=True))
    assert tried == ["autoencoder", "diffusion"]
    assert torch.equal(*states)
    for name in ("network", "discriminators"):
        first, second = (end["objects"][name] for end in ends)
        assert all(torch.equal(first[key], second[key]) for key in second)


def test_phase_that_goes_on_is_not_tried_again(bundle, settings, monkeypatch):
    bundle("train_autoencoder", **(settings | {"trial_step": False}))
    phases = []
    monkeypatch.setattr(memory, "try_step", lambda trainer, free: phases.append(trainer.phase))
    bundle("train_autoencoder", **settings)
    assert phases == ["diffusion"]
