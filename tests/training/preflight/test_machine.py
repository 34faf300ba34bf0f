"""Device, memory and versions."""

from types import SimpleNamespace

import psutil
import pytest
import torch

from medfusion_monai.training.preflight import machine
from medfusion_monai.training.preflight.machine import check_device, check_versions


def test_cpu_is_shown_with_its_available_memory(monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda device: 3 * 2**30)
    assert check_device("cpu").endswith("3.0 GiB free")


@pytest.mark.parametrize("device", ["cuda", "cuda:7", torch.device("cuda", 2)])
def test_missing_gpu_is_refused_with_the_number_of_gpus(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda:7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    number = 2 if device == "cuda:7" else 0
    with pytest.raises(ValueError, match=f"device {device} is unavailable, PyTorch finds {number} CUDA devices"):
        check_device(device)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", None])
def test_unknown_device_is_refused(device):
    with pytest.raises(ValueError, match="is unknown: choose cpu"):
        check_device(device)


def test_device_without_a_backend_is_refused():
    with pytest.raises(ValueError, match="device xpu cannot be used here"):
        check_device("xpu")


def test_limit_of_a_container_counts_and_its_file_pages_are_free(tmp_path):
    contents = {"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 1\ninactive_file 50"}
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    assert machine._control_group_free(tmp_path) == [350]
    (tmp_path / "memory.max").write_text("max")
    assert machine._control_group_free(tmp_path) == []


@pytest.mark.skipif(not psutil.LINUX, reason="psutil reads limits on Linux")
@pytest.mark.parametrize(("kind", "field"), [(psutil.RLIMIT_AS, "vms"), (psutil.RLIMIT_DATA, "data")])
def test_limit_of_the_process_counts(kind, field, monkeypatch):
    used = SimpleNamespace(**{"vms": 0, "data": 0, field: 100})
    limits = {kind: (100 + 7 * 2**20, psutil.RLIM_INFINITY)}
    monkeypatch.setattr(psutil.Process, "memory_info", lambda process: used)
    monkeypatch.setattr(psutil.Process, "rlimit", lambda process, asked: limits.get(asked, (psutil.RLIM_INFINITY,) * 2))
    assert machine.available_memory(torch.device("cpu")) == 7 * 2**20


def test_memory_of_this_machine_is_found():
    assert 2**20 < machine.available_memory(torch.device("cpu")) < psutil.virtual_memory().total


def test_versions_that_are_installed_are_named():
    assert f"torch {torch.__version__}" in check_versions()


def test_packages_that_are_missing_or_too_old_are_listed(monkeypatch):
    needed = ["numpy>=99", "nothing-of-this-name>=1", "pillow>=1", "onnx>=99; extra == 'export'"]
    monkeypatch.setattr(machine, "requires", lambda name: needed)
    with pytest.raises(
        ValueError, match=r"^numpy \S+ \(needs >=99\), nothing-of-this-name missing \(needs >=1\): inst"
    ):
        check_versions()
