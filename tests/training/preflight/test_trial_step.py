"""Measured memory of steps whose memory is known."""

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
    """Measures a step that needs 1000 bytes plus 100 per image."""
    tried = []

    def measure(batch_size, free, at_once=None):
        monkeypatch.setattr(memory, "_reset_peak", lambda: True)
        monkeypatch.setattr(memory, "_peak", lambda: 1000 + 100 * tried[-1])
        return memory._on_cpu(tried.append, batch_size, at_once or batch_size, free), tried

    return measure


def test_large_step_is_extrapolated_from_few_images_on_a_cpu(on_cpu):
    trial, tried = on_cpu(32, 4200)
    assert (trial.needed, trial.fits) == (4200, 32)
    assert max(tried) == memory.FEW


@pytest.mark.parametrize(("free", "fits"), [(4199, 31), (2000, 10), (1100, 1), (1099, 0)])
def test_largest_step_that_fits_is_found_on_a_cpu(free, fits, on_cpu):
    trial, _ = on_cpu(32, free)
    assert (trial.needed, trial.fits) == (4200, fits)


def test_step_in_micro_batches_needs_the_memory_of_one(on_cpu):
    trial, _ = on_cpu(32, 1800, at_once=8)
    assert (trial.needed, trial.fits) == (1800, 32)


def test_step_of_one_image_is_measured(on_cpu):
    trial, tried = on_cpu(1, 1100)
    assert (trial.needed, trial.fits, set(tried)) == (1100, 1, {1})


def test_system_without_a_resettable_peak_is_not_measured(on_cpu, monkeypatch):
    monkeypatch.setattr(memory.Path, "write_text", lambda *_: (_ for _ in ()).throw(PermissionError))
    assert memory._on_cpu(lambda images: None, 4, 4, 10.0) is None


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_of_real_tensors_is_measured():
    # In a process of its own: this one may reuse memory that other tests freed.
    program = """
import psutil, torch
from medfusion_monai.training.preflight import trial_step as memory
MIB = 2**20
trial = memory._on_cpu(lambda images: torch.ones(images * 32 * MIB // 4).sum(), 64, 64, 1e15)
print(trial.needed - psutil.Process().memory_info().rss)
"""
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert float(output) == pytest.approx(64 * 32 * MIB, rel=0.1)


class FakeCuda:
    """A GPU of 1000 bytes, where a step takes 200 plus 50 per image."""

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
    trial = memory._on_cuda(gpu.step, batch_size, torch.device("cuda"), 1000)
    assert (trial.needed, trial.fits) == (needed, fits)
    assert gpu.tried[0] == batch_size


def test_largest_step_of_a_gpu_is_one_that_was_made(monkeypatch):
    gpu = FakeCuda(monkeypatch)
    trial = memory._on_cuda(gpu.step, 64, torch.device("cuda"), 1500)  # more is free than can be allocated
    assert 0 < trial.fits <= 16
    assert trial.fits in gpu.tried


def test_refusal_names_key_sizes_and_what_would_fit():
    trial = memory.Trial(31 * 2**30, 14)
    words = memory._refusal("diffusion", 32, trial, 15.2 * 2**30, torch.device("cuda", 0))
    assert words.startswith("diffusion_batch_size 32: a step needs 31.0 GiB, cuda:0 has 15.2 GiB free; ")
    assert "--micro_batch_size 14 would fit, with the same results" in words
    assert "--autoencoder_batch_size 3 would fit" in memory._refusal("autoencoder", 8, memory.Trial(9.0, 3), 1.0, CPU)
    assert "not even one image fits" in memory._refusal("diffusion", 32, memory.Trial(9.0, 0), 1.0, CPU)


def trainer_of(phase, is_begun=False, batch_size=8, **settings):
    return SimpleNamespace(
        phase=phase,
        is_begun=is_begun,
        batch_size=batch_size,
        state=SimpleNamespace(device=CPU, max_epochs=5, epoch_length=100),
        **settings,
    )


def test_problems_of_all_phases_are_reported(monkeypatch):
    def try_step(trainer, free):
        if trainer.phase == "diffusion":
            raise ValueError("8 were measured to fit")
        return memory.Trial(2.0 * 2**30, 3)

    monkeypatch.setattr(memory, "try_step", try_step)
    with pytest.raises(ValueError, match="--autoencoder_batch_size 3 would fit") as caught:
        memory.check_memory([trainer_of("autoencoder"), trainer_of("diffusion")])
    assert str(caught.value).endswith("; diffusion_batch_size: 8 were measured to fit")


def test_memory_of_a_system_that_does_not_report_it_is_not_a_problem(monkeypatch):
    monkeypatch.setattr(memory, "try_step", lambda trainer, free: None)
    assert memory.check_memory([trainer_of("autoencoder")]) == "memory of cpu cannot be measured on this system"


@pytest.mark.parametrize(("resumed", "tried"), [([], ["autoencoder", "diffusion"]), (["autoencoder"], ["diffusion"])])
def test_phases_that_resume_are_not_tried(resumed, tried, monkeypatch):
    phases = []
    monkeypatch.setattr(memory, "available_memory", lambda device: 2**40)
    trial = memory.Trial(MIB, 8, seconds=2.0)
    monkeypatch.setattr(memory, "try_step", lambda trainer, free: phases.append(trainer.phase) or trial)
    words = memory.check_memory([trainer_of(name, name in resumed) for name in ("autoencoder", "diffusion")])
    assert words.startswith("; ".join(f"{name} 1.0 MiB, about 17 min for 500 steps" for name in tried) + "; 10")
    assert phases == tried


def test_time_of_a_step_is_extrapolated_from_few_images(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(memory.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(memory, "_reset_peak", lambda: True)
    monkeypatch.setattr(memory, "_peak", lambda: 1000)

    def process(engine, images):
        now[0] += 1.0 + 0.5 * images if calls else 100.0  # the first step warms up
        calls.append(images)

    twin = SimpleNamespace(state=SimpleNamespace(), _process_function=process)
    trainer = trainer_of("diffusion", batch_size=32, at_once=8, twin=lambda: twin, noise=lambda images: images)
    assert memory.try_step(trainer, 1.0e9).seconds == pytest.approx(1.0 + 0.5 * 32)


def test_no_step_is_tried_where_all_phases_resume():
    phases = [trainer_of(name, is_begun=True) for name in ("autoencoder", "diffusion")]
    assert memory.check_memory(phases) == "not tried, the run resumes"


def test_images_at_a_time_are_those_of_the_phase(monkeypatch):
    found = []
    monkeypatch.setattr(memory, "_on_cpu", lambda step, batch_size, at_once, free: found.append(at_once))
    memory.try_step(trainer_of("diffusion", batch_size=8, at_once=3, twin=lambda: None), 1.0)
    assert found == [3]
