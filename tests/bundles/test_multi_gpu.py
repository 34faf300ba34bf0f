"""The configs under torchrun: two processes on the CPU do what one does with twice the batch."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from monai.bundle import run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medfusion_monai.evaluation.metrics.label_steering import label_steering
from medfusion_monai.sampling.writer import SampleWriter

CONFIGS = Path(__file__).parents[2] / "bundles" / "medfusion_cxr" / "configs"
# Large steps, so that a gradient that is not that of all images shows after few.
LIVELY = {
    "autoencoder_lr_warmup": 0,
    "autoencoder_lr_decay": "constant",
    "adversarial_start": 1,
    "adversarial_lr": 0.0005,
    "discriminator_lr": 0.01,
    "diffusion_lr": 0.003,
    "diffusion_lr_warmup": 2,
    "diffusion_lr_decay": "constant",
    "log_interval": 1,
}
SHARE = {"autoencoder_batch_size": 2, "diffusion_batch_size": 2}
TUNING = {
    "num_inference_steps": 2,
    "tuning_teacher_steps": 2,
    "tuning_steps": 4,
    "tuning_val_interval": 2,
    "tuning_batch_size": 4,
    "tuning_lr": 0.003,
    "tuning_lr_warmup": 0,
    "tuning_lr_decay": "constant",
    "log_interval": 1,
}

pytestmark = pytest.mark.usefixtures("one_thread")


def load(path):
    return torch.load(path, weights_only=True)


def places(folder):
    return {"model_dir": str(folder / "models"), "output_dir": str(folder / "runs")}


def median_difference(first, second):
    """Give the median, as Adam makes whole steps of the few gradients that consist of rounding errors alone."""
    assert first.keys() == second.keys()
    return torch.cat([(first[name].double() - second[name].double()).abs().flatten() for name in first]).median().item()


def scalars(folder):
    (file,) = (folder / "runs" / "tensorboard").iterdir()
    events = EventAccumulator(str(file))
    events.Reload()
    return {name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


@pytest.fixture(scope="session")
def tiny(bundle):
    return sys.modules[bundle.__module__].TINY


@pytest.fixture(scope="session")
def sampling(bundle):
    return sys.modules[bundle.__module__].SAMPLING


@pytest.fixture
def together(two_processes, tiny, sampling):
    """Runs a config in two processes; gives what each raises."""

    def start(run_id, config="train.yaml", before=None, overlays=("demo.yaml",), **overrides):
        training = config == "train.yaml"
        files = [str(CONFIGS / name) for name in (config, *(overlays if training else ()))]
        own = tiny | {"trial_step": False} if training else sampling
        if config == "evaluate.yaml":
            own = {name: sampling[name] for name in ("precision", "device")}

        def work(rank):
            if before:
                before(rank)
            run(run_id=run_id, config_file=files, **(own | overrides))

        return two_processes(work, connect=False)

    return start


@pytest.fixture(scope="module")
def alone(bundle, dataset_dir, tmp_path_factory):
    """A training of both phases, adversarial phase included, in one process."""
    folder = tmp_path_factory.mktemp("alone")
    bundle("training", dataset_dir=str(dataset_dir), **LIVELY, **places(folder))
    return folder


def test_two_processes_train_both_phases_as_one_with_twice_the_batch(alone, together, dataset_dir, tmp_path):
    assert together("training", dataset_dir=str(dataset_dir), **LIVELY, **SHARE, **places(tmp_path)) == [None, None]
    for name in ("autoencoder.pt", "model.pt"):
        assert median_difference(load(alone / "models" / name), load(tmp_path / "models" / name)) < 1e-6
    for phase in ("autoencoder", "diffusion"):
        file = f"runs/checkpoints/{phase}_training.pt"
        one, two = load(alone / file)["objects"], load(tmp_path / file)["objects"]
        assert two["best"]["best"] == pytest.approx(one["best"]["best"], rel=1e-4)  # large steps enlarge roundings
        assert median_difference(one["network"], two["network"]) < 1e-6
        other = "discriminators" if phase == "autoencoder" else "ema"
        one, two = (state[other].get("module", state[other]) for state in (one, two))
        assert median_difference(one, two) < 1e-6
    assert [path.name for path in tmp_path.rglob("*.pt")] == [path.name for path in alone.rglob("*.pt")]
    assert scalars(tmp_path).keys() == scalars(alone).keys()


def test_two_processes_tune_for_few_steps_as_one_with_twice_the_batch(alone, together, bundle, dataset_dir, tmp_path):
    settings = {"dataset_dir": str(dataset_dir), "pretrained_model": str(alone / "models"), **TUNING}
    overlays = ("demo.yaml", "few_steps.yaml")
    one, two = ({**places(tmp_path / name), "latents_dir": str(tmp_path / name)} for name in ("one", "two"))
    bundle("training", overlays=overlays, **settings, **one)
    shared = {**settings, "tuning_batch_size": TUNING["tuning_batch_size"] // 2}
    assert together("training", overlays=overlays, **shared, **two) == [None, None]
    before, first, second = (
        torch.cat(
            [value.flatten() for name, value in load(folder / "models/model.pt").items() if name.startswith("unet.")]
        )
        for folder in (alone, tmp_path / "one", tmp_path / "two")
    )
    moved = (first - before).abs() > 1e-3  # at this size, many weights only meet the zeros around the latents
    assert moved.float().mean() > 0.25
    assert (first - second)[moved].abs().median() < 1e-5


def test_learning_rates_of_the_steps_are_logged(alone):
    logged = scalars(alone)
    assert logged["autoencoder/lr"] == pytest.approx([0.001, 0.0005, 0.0005, 0.0005])
    assert logged["diffusion/lr"] == pytest.approx([0.0015, 0.003, 0.003, 0.003])


def test_two_processes_go_on_with_the_training_of_one(alone, together, bundle, dataset_dir, tmp_path):
    settings = {"dataset_dir": str(dataset_dir), **LIVELY, **places(tmp_path)}
    bundle("train_autoencoder", **settings, autoencoder_steps=2)
    for error in together("train_autoencoder", **settings):
        assert "now they have 8: choose a batch size and a number of processes whose product is 4" in str(error)
    assert together("train_autoencoder", **settings, **SHARE) == [None, None]
    one, two = (load(folder / "runs/checkpoints/autoencoder_training.pt") for folder in (alone, tmp_path))
    assert two["iteration"] == 4
    assert median_difference(one["objects"]["network"], two["objects"]["network"]) < 1e-6


def test_spoilt_image_is_named_by_all_processes(together, dataset_dir, tmp_path):
    data = Path(shutil.copytree(dataset_dir, tmp_path / "data"))
    image = data / json.loads((data / "datalist.json").read_text())["training"][3]["image"]
    image.write_bytes(b"no image at all")
    errors = together("training", dataset_dir=str(data), **places(tmp_path))
    assert str(errors[0]) == str(errors[1])
    assert image.name in str(errors[0])
    assert not list(tmp_path.rglob("*.pt"))


@pytest.fixture
def measuring(dataset_dir, lively, samples_dir, features, monkeypatch):
    """Settings of an evaluation with all its parts."""
    monkeypatch.setattr("medfusion_monai.evaluation.report_parts.label_steering", partial(label_steering, steps=2))
    places = {"dataset_dir": str(dataset_dir), "model_dir": str(lively), "samples_dir": str(samples_dir)}
    sweep = {"sweep_steps": [2, 3], "sweep_samples": 3}
    return places | sweep | {"features": features, "image_size": [48, 48], "replicates": 5, "classifier_seeds": [0]}


@pytest.mark.parametrize("batch_size", [2, 8])  # reconstructions of 4 images: two batches, and one that both have
def test_two_processes_report_the_figures_of_one(batch_size, measuring, together, bundle, tmp_path):
    settings = measuring | {"batch_size": batch_size, "splits": "validation"}
    bundle("evaluating", "evaluate.yaml", **settings, output_dir=str(tmp_path / "one"))
    assert together("evaluating", "evaluate.yaml", **settings, output_dir=str(tmp_path / "two")) == [None, None]
    one, two = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two"))
    assert {"reconstructions", "fidelity", "steering", "sweep"} <= two.keys()
    assert two == one
    assert files_below(tmp_path / "two") == files_below(tmp_path / "one")


def test_stored_features_are_found_by_any_number_of_processes(measuring, together, bundle, tmp_path, monkeypatch):
    bundle("evaluating", "evaluate.yaml", **measuring, output_dir=str(tmp_path))
    first = (tmp_path / "report.json").read_bytes()

    def refuse(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr("medfusion_monai.evaluation.step_sweep._sampled_features", refuse)
    monkeypatch.setattr("medfusion_monai.evaluation.metrics.feature_cache._extract", refuse)
    assert together("evaluating", "evaluate.yaml", **measuring, output_dir=str(tmp_path)) == [None, None]
    assert (tmp_path / "report.json").read_bytes() == first


def test_spoilt_image_ends_the_evaluation_of_all_processes(measuring, together, dataset_dir, tmp_path):
    data = Path(shutil.copytree(dataset_dir, tmp_path / "data"))
    image = data / json.loads((data / "datalist.json").read_text())["test"][-1]["image"]
    image.write_bytes(b"no image at all")
    settings = measuring | {"dataset_dir": str(data), "splits": "validation", "output_dir": str(tmp_path / "report")}
    errors = together("evaluating", "evaluate.yaml", **settings, batch_size=2)
    assert str(errors[0]) == str(errors[1])
    assert image.name in str(errors[0])
    assert not (tmp_path / "report" / "report.json").exists()


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def contents(folder):
    # A process that was lost leaves its lock, which holds nobody.
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".run.lock"}


@pytest.fixture
def sampled(bundle, lively, tmp_path):
    """What one process writes, and the settings of the run in another folder."""
    settings = {"model_dir": str(lively), "num_samples": 5, "batch_size": 2}
    bundle("inference", "inference.yaml", **settings, output_dir=str(tmp_path / "one"))
    return contents(tmp_path / "one"), settings | {"output_dir": str(tmp_path / "two")}


def test_two_processes_write_the_bytes_of_one(sampled, together, tmp_path):
    whole, settings = sampled
    assert together("inference", "inference.yaml", **settings) == [None, None]
    assert contents(tmp_path / "two") == whole


@pytest.mark.parametrize("processes", [1, 2])
def test_sampling_goes_on_after_a_process_was_lost(processes, sampled, together, bundle, tmp_path, monkeypatch):
    whole, settings = sampled
    write, calls = SampleWriter.__call__, []

    def fail_at_the_second_batch(writer, engine):
        calls.append(engine)
        if len(calls) == 2 and writer.rank == 1:
            writer.settle()
            raise KeyError("power cut")
        write(writer, engine)

    monkeypatch.setattr(SampleWriter, "__call__", fail_at_the_second_batch)
    assert all(together("inference", "inference.yaml", **settings))
    monkeypatch.undo()
    left = contents(tmp_path / "two")
    assert "manifest.1.csv" in left
    assert len(left) < len(whole)
    if processes == 2:
        assert together("inference", "inference.yaml", **settings) == [None, None]
    else:
        bundle("inference", "inference.yaml", **settings)
    assert contents(tmp_path / "two") == whole


def torchrun(run_id, config, settings, tmp_path):
    names = ("train", "demo") if config == "train" else (config,)
    files = [str(CONFIGS / f"{name}.yaml") for name in names]
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", run_id, "--config_file", str(files)]
    command += ["--args_file", str(tmp_path / "settings.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]


def measure(settings, dataset_dir, tmp_path):
    own = {name: settings[name] for name in ("device", "precision", "model_dir") if name in settings}
    places = {"dataset_dir": str(dataset_dir), "samples_dir": None, "output_dir": str(tmp_path / "report")}
    torchrun("evaluating", "evaluate", own | places | {"image_size": [48, 48]}, tmp_path)
    assert json.loads((tmp_path / "report" / "report.json").read_text())["reconstructions"]


@pytest.mark.slow
def test_torchrun_commands_train_sample_and_measure(tiny, sampling, dataset_dir, tmp_path):
    training = tiny | {"dataset_dir": str(dataset_dir)} | places(tmp_path)
    for phase, file in (("autoencoder", "autoencoder.pt"), ("diffusion", "model.pt")):
        torchrun(f"train_{phase}", "train", training, tmp_path)
        assert (tmp_path / "models" / file).is_file()
    settings = sampling | {"model_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "samples")}
    torchrun("inference", "inference", settings | {"num_samples": 3, "batch_size": 2}, tmp_path)
    assert len(list((tmp_path / "samples").iterdir())) == 8
    measure(settings, dataset_dir, tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_sample_and_measure(tiny, sampling, dataset_dir, tmp_path):
    on_gpus = {name: value for name, value in (tiny | LIVELY).items() if name != "device"}
    torchrun("training", "train", on_gpus | {"dataset_dir": str(dataset_dir)} | places(tmp_path), tmp_path)
    own = {name: value for name, value in sampling.items() if name != "device"}
    settings = own | {"model_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "samples")}
    torchrun("inference", "inference", settings | {"num_samples": 3, "batch_size": 2}, tmp_path)
    assert len(list((tmp_path / "samples").iterdir())) == 8
    measure(settings, dataset_dir, tmp_path)
