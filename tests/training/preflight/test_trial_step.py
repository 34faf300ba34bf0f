"""Memory of steps, from steps whose memory is known."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from medfusion_monai.training.preflight import trial_step as memory

CPU = torch.device("cpu")
MIB = 2**20


@pytest.fixture
def on_cpu(monkeypatch):
    """Measures a phase whose step needs 1000 bytes, and 100 for each image of it."""
    tried = []

    def measure(batch_size, free, at_once=None):
        monkeypatch.setattr(memory, "_forget_peak", lambda: True)
        monkeypatch.setattr(memory, "_peak", lambda: 1000 + 100 * tried[-1])
        return memory._on_cpu(tried.append, "diffusion", batch_size, at_once or batch_size, free), tried

    return measure


def test_large_step_is_extrapolated_from_few_images_on_a_cpu(on_cpu):
    trial, tried = on_cpu(32, 4200)
    assert (trial.needed, trial.fits) == (4200, 32)
    assert max(tried) == memory.FEW


@pytest.mark.parametrize(("free", "fits"), [(4199, 31), (2000, 10), (1100, 1), (1099, 0)])
def test_largest_step_that_fits_is_told_on_a_cpu(free, fits, on_cpu):
    trial, _ = on_cpu(32, free)
    assert (trial.needed, trial.fits) == (4200, fits)


def test_step_in_small_parts_needs_what_a_part_does(on_cpu):
    trial, _ = on_cpu(32, 1800, at_once=8)
    assert (trial.needed, trial.fits) == (1800, 32)


def test_step_of_one_image_is_measured(on_cpu):
    trial, tried = on_cpu(1, 1100)
    assert (trial.needed, trial.fits, set(tried)) == (1100, 1, {1})


def test_system_that_does_not_tell_is_not_measured(on_cpu, monkeypatch):
    monkeypatch.setattr(memory.Path, "write_text", lambda *_: (_ for _ in ()).throw(PermissionError))
    assert memory._on_cpu(lambda images: None, "diffusion", 4, 4, 10.0) is None


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_memory_of_real_tensors_is_measured():
    # In a process of its own: this one may have room that other tests left.
    program = """
import torch
from medfusion_monai.training.preflight import trial_step as memory
MIB = 2**20
trial = memory._on_cpu(lambda images: torch.ones(images * 32 * MIB // 4).sum(), "diffusion", 64, 64, 1e15)
print(trial.needed - memory.resident())
"""
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert float(output) == pytest.approx(64 * 32 * MIB, rel=0.1)


class FakeCuda:
    """A GPU of 1000 bytes where a step takes 200, and 50 for each image."""

    def __init__(self, monkeypatch):
        self.tried, self.peak = [], 0
        monkeypatch.setattr(memory, "release_memory", lambda: None)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *_: None)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 0)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: self.peak)

    def step(self, images):
        self.tried.append(images)
        if 200 + 50 * images > 1000:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.peak = 200 + 50 * images


@pytest.mark.parametrize(
    ("batch_size", "needed", "fits"), [(16, 1000, 16), (17, 1050, 16), (64, 3400, 16), (1, 250, 1)]
)
def test_whole_step_is_made_on_a_gpu_and_the_largest_that_fits_is_found(batch_size, needed, fits, monkeypatch):
    gpu = FakeCuda(monkeypatch)
    trial = memory._on_cuda(gpu.step, "diffusion", batch_size, torch.device("cuda"), 1000)
    assert (trial.needed, trial.fits) == (needed, fits)
    assert gpu.tried[0] == batch_size


def test_largest_step_of_a_gpu_is_one_that_was_made(monkeypatch):
    gpu = FakeCuda(monkeypatch)
    trial = memory._on_cuda(gpu.step, "diffusion", 64, torch.device("cuda"), 1500)  # more is free than can be had
    assert 0 < trial.fits <= 16
    assert trial.fits in gpu.tried


def test_refusal_names_key_sizes_and_what_would_fit():
    trial = memory.Trial("diffusion", 32, 31 * 2**30, 14)
    words = memory._refusal(trial, 15.2 * 2**30, torch.device("cuda", 0))
    assert words.startswith("diffusion_batch_size 32: a step needs 31.0 GiB, cuda:0 has 15.2 GiB free; ")
    assert "--micro_batch_size 14 would fit, with the same results" in words
    assert "--autoencoder_batch_size 3 would fit" in memory._refusal(memory.Trial("autoencoder", 8, 9.0, 3), 1.0, CPU)
    assert "not even one image fits" in memory._refusal(memory.Trial("diffusion", 32, 9.0, 0), 1.0, CPU)


def trainer_of(phase, **settings):
    return SimpleNamespace(phase=phase, state=SimpleNamespace(device=CPU), **settings)


def test_problems_of_all_phases_are_told(monkeypatch):
    def try_step(trainer, free):
        if trainer.phase == "diffusion":
            raise ValueError("8 at a time were measured to fit")
        return memory.Trial(trainer.phase, 8, 2.0 * 2**30, 3)

    monkeypatch.setattr(memory, "try_step", try_step)
    words, problems = memory._try_phases([trainer_of("autoencoder"), trainer_of("diffusion")], CPU, 2.0**30)
    assert words == []
    assert "--autoencoder_batch_size 3 would fit" in problems[0]
    assert problems[1] == "diffusion_batch_size: 8 at a time were measured to fit"


def test_phases_that_go_on_are_not_tried(monkeypatch):
    tried = []

    def try_steps(trainers):
        tried.append([trainer.phase for trainer in trainers])
        return "1 GiB"

    monkeypatch.setattr(memory, "try_steps", try_steps)
    phases = [trainer_of("autoencoder", is_begun=True), trainer_of("diffusion", is_begun=False)]
    assert memory.check_memory(phases) == "1 GiB"
    phases[0].is_begun = False
    assert memory.check_memory(phases) == "1 GiB"
    phases[0].is_begun = phases[1].is_begun = True
    assert "not tried" in memory.check_memory(phases)
    assert tried == [["diffusion"], ["autoencoder", "diffusion"]]


def test_images_at_a_time_are_those_that_the_phase_says(monkeypatch):
    found = []
    monkeypatch.setattr(memory, "_on_cpu", lambda step, phase, batch_size, at_once, free: found.append(at_once))
    memory.try_step(trainer_of("diffusion", batch_size=8, at_once=3, twin=lambda: None), 1.0)
    assert found == [3]
