"""`run training`, stopped in many ways, ends with the bits of a run that was never stopped."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from monai.bundle import run
from monai.handlers import LrScheduleHandler
from states import assert_same
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import medfusion_monai.training.train_autoencoder
from medfusion_monai.training.handlers.stop_on_signal import StoppedBySignal

CONFIGS = Path(__file__).parents[2] / "bundles" / "medfusion_cxr" / "configs"
# Adversarial phase, dropped labels and a changing learning rate included; each step's loss is logged.
SETTINGS = {
    "autoencoder_lr_warmup": 3,
    "adversarial_start": 2,
    "diffusion_lr_warmup": 3,
    "log_interval": 1,
    "check_files": False,
    "trial_step": False,
    "random_transforms": [{"_target_": "RandFlipd", "keys": "image", "prob": 0.5, "spatial_axis": 1}],
    "cache_latents": False,
}


def places(folder):
    return {"model_dir": str(folder / "models"), "output_dir": str(folder / "runs")}


def logged(folder):
    """Every value of each scalar and step, over all starts of the run."""
    values = defaultdict(list)
    for file in sorted((folder / "runs" / "tensorboard").iterdir()):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        for name in events.Tags()["scalars"]:
            for event in events.Scalars(name):
                values[name, event.step].append(event.value)
    return values


def assert_same_end(stopped, whole):
    """Compare weights, averaged weights, optimizers, best values, losses, metrics and pictures."""
    for name in ("models/autoencoder.pt", "models/model.pt", "runs/checkpoints/autoencoder_best.pt"):
        assert_same(load(stopped / name), load(whole / name), name)
    for phase in ("autoencoder", "diffusion"):
        name = f"runs/checkpoints/{phase}_training.pt"
        assert_same(load(stopped / name), load(whole / name), name)
    once, repeated = logged(whole), logged(stopped)
    assert all(len(values) == 1 for values in once.values())
    assert {key: set(values) for key, values in repeated.items()} == {key: set(values) for key, values in once.items()}
    pictures = [{path.name: path.read_bytes() for path in (f / "runs/pictures").iterdir()} for f in (stopped, whole)]
    assert pictures[0] == pictures[1]


def load(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def tiny(bundle, dataset_dir):
    return sys.modules[bundle.__module__].TINY | SETTINGS | {"dataset_dir": str(dataset_dir)}


@pytest.fixture
def _signals_as_before():
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def run_with_signals(steps, files, settings, speaks=True):
    """Run the training, and again whenever it is stopped; give the exit codes.

    Args:
        steps: numbers of steps, counted over phases and starts, during which a signal comes.
        files: names of configs.
        settings: overrides.
        speaks: whether this process is the one that gets the signals.
    """
    count, codes, step = 0, [], LrScheduleHandler.__call__

    def counted(handler, engine):
        nonlocal count
        count += 1
        if count in steps and speaks:
            os.kill(os.getpid(), random.choice([signal.SIGTERM, signal.SIGUSR1]))
        step(handler, engine)

    LrScheduleHandler.__call__ = counted
    try:
        while True:
            try:
                run(run_id="training", config_file=[str(CONFIGS / f"{name}.yaml") for name in files], **settings)
                return codes
            except StoppedBySignal as stop:
                codes.append(stop.code)
                if os.environ.get("WORLD_SIZE", "1") != "1":  # another start would need a new process group
                    return codes
    finally:
        LrScheduleHandler.__call__ = step


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A training that is never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert run_with_signals([], ["train", "demo"], tiny | places(folder)) == []
    return folder


@pytest.mark.usefixtures("_signals_as_before")
def test_training_that_is_signalled_within_epochs_of_both_phases_ends_with_the_same_bits(tiny, whole, tmp_path):
    assert run_with_signals([1, 2, 3, 5, 8], ["train", "demo"], tiny | places(tmp_path)) == [75] * 5
    assert_same_end(tmp_path, whole)


@pytest.mark.usefixtures("_signals_as_before")
def test_training_with_moments_of_eight_bits_ends_with_the_same_bits_and_keeps_them(tiny, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    settings = tiny | {"eight_bit_moments": True, "channels_last": True, "micro_batch_size": 1}
    assert run_with_signals([], ["train", "demo"], settings | places(whole)) == []
    assert run_with_signals([6, 8], ["train", "demo"], settings | places(stopped)) == [75] * 2
    assert_same_end(stopped, whole)
    weights = load(stopped / "runs/checkpoints/diffusion_training.pt")["objects"]["optimizer"]["state"].values()
    assert any("torch.uint8" in str(state) for state in weights)
    with pytest.raises(RuntimeError) as refused:
        run_with_signals([], ["train", "demo"], settings | places(stopped) | {"eight_bit_moments": False})
    different, _, may_change = str(refused.value.__cause__).partition("Only ")
    assert "eight_bit_moments" in different
    assert "micro_batch_size" in may_change
    assert "eight_bit_moments" not in may_change


@pytest.mark.usefixtures("_signals_as_before")
def test_training_that_is_signalled_between_its_phases_ends_with_the_same_bits(tiny, whole, tmp_path, monkeypatch):
    measure = medfusion_monai.training.train_autoencoder.measure_latent_statistics
    signals = [signal.SIGUSR1]

    def signalled(*arguments):
        while signals:
            os.kill(os.getpid(), signals.pop())
        return measure(*arguments)

    monkeypatch.setattr("medfusion_monai.training.train_autoencoder.measure_latent_statistics", signalled)
    assert run_with_signals([], ["train", "demo"], tiny | places(tmp_path)) == [75]
    assert_same_end(tmp_path, whole)


@pytest.mark.slow
def test_two_processes_of_which_one_is_signalled_end_with_the_same_bits(tiny, tmp_path, two_processes):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    files, own = ["train", "demo"], {name: value for name, value in tiny.items() if name != "device"}

    def start(folder, steps):
        def work(rank):
            return run_with_signals(steps, files, own | places(folder), speaks=rank == 1)

        return two_processes(work, connect=False)

    assert start(whole, []) == [[], []]
    assert start(stopped, [3]) == [[75], [75]]
    assert start(stopped, [3]) == [[75], [75]]  # the second step of phase two
    assert start(stopped, []) == [[], []]
    assert_same_end(stopped, whole)


def command(folder, settings, processes):
    files = ["train", "demo"]
    folder.mkdir(exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(settings | places(folder)))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] * (processes > 1)
    launched = [sys.executable, *torchrun, "-m", "monai.bundle", "run", "training"]
    launched += ["--config_file", str([str(CONFIGS / f"{name}.yaml") for name in files])]
    return [*launched, "--args_file", str(folder / "settings.json")]


def descendants(pid):
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*children, *(below for child in children for below in descendants(child))]


def start_and_kill(launched, number, delay, log):
    """Start, kill some seconds after the first step; give the exit code, or None where the training is not done."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (
        open(log, "wb") as file,
        subprocess.Popen(launched, stdout=file, stderr=file, env=environment) as process,
    ):
        deadline = time.monotonic() + 120
        while b"phase " not in log.read_bytes() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        try:
            return process.wait(delay)
        except subprocess.TimeoutExpired:
            if number == signal.SIGKILL:
                for pid in [process.pid, *descendants(process.pid)]:  # torchrun's have process groups of their own
                    os.kill(pid, number)
            else:
                process.send_signal(number)
            code = process.wait(60)
            told = log.read_bytes()
            if (
                code and number != signal.SIGKILL and b"phase two is finished" not in told
            ):  # else it had nothing to save
                assert code == (1 if "torch.distributed.run" in launched else 75), log.read_text()[-2000:]
                assert b"(exit code 75)" in told, log.read_text()[-2000:]
            return None if code else 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_command_that_is_killed_at_random_moments_ends_with_the_same_bits(number, processes, tiny, tmp_path):
    steps = {"autoencoder_steps": 40, "autoencoder_val_interval": 10, "diffusion_steps": 80}
    settings = tiny | steps | {"diffusion_val_interval": 20, "num_inference_steps": 20, "checkpoint_interval": 3}
    if number == signal.SIGKILL:  # latents are kept in a store then, which kills may hit as well
        settings["random_transforms"] = []
    if processes > 1:
        settings = {name: value for name, value in settings.items() if name != "device"}
    whole, killed, moments = tmp_path / "whole", tmp_path / "killed", random.Random(1)
    assert start_and_kill(command(whole, settings, processes), number, 300, tmp_path / "whole.log") == 0
    code, kills = None, 0
    while code is None:
        delay = moments.uniform(0.2, 3.0) if kills < 10 else 300
        code = start_and_kill(command(killed, settings, processes), number, delay, tmp_path / f"{kills}.log")
        kills += code is None
    assert code == 0, (tmp_path / f"{kills}.log").read_text()[-2000:]
    assert kills > 0
    assert_same_end(killed, whole)


def test_command_leaves_with_exit_code_75_and_says_where_it_goes_on(tiny, tmp_path):
    settings = tiny | {"autoencoder_steps": 100000, "autoencoder_val_interval": 50000}
    log = tmp_path / "log"
    launched = command(tmp_path / "run", settings, 1)
    with open(log, "wb") as file, subprocess.Popen(launched, stdout=file, stderr=file) as process:
        deadline = time.monotonic() + 120
        while b"phase one" not in log.read_bytes() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGUSR1)
    assert process.returncode == 75, log.read_text()[-2000:]
    assert "medfusion: stopped by SIGUSR1 after step" in log.read_text()
    assert load(tmp_path / "run" / "runs" / "checkpoints" / "autoencoder_training.pt")["iteration"] > 0
