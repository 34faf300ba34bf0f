"""The bundle runner restarts once, with threads that soon sleep while they wait."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from medfusion_monai.runtime import threads

CONFIG = """
imports:
- $import os
- $import medfusion_monai
- $import medfusion_monai.runtime.threads
device: {device}
initialize:
- $print('started', os.getpid(), os.environ.get('GOMP_SPINCOUNT'))
- $medfusion_monai.runtime.threads.shorten_spinning(@device)
run:
- $print('run', os.getpid(), os.environ.get('GOMP_SPINCOUNT'))
"""


def run(folder, device="cpu", **environment):
    (folder / "config.yaml").write_text(CONFIG.format(device=device))
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "config.yaml"]
    removed = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS"}
    own = {name: value for name, value in os.environ.items() if name not in removed}
    own |= {"OMP_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore", **environment}
    result = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, check=True)
    return [line.split() for line in result.stdout.splitlines() if line.startswith(("started ", "run "))]


def test_runner_restarts_once_in_the_same_process(tmp_path):
    first, second, last = run(tmp_path)
    assert (first[0], second[0], last[0]) == ("started", "started", "run")
    assert (first[2], second[2], last[2]) == ("None", "1000", "1000")
    assert first[1] == second[1] == last[1]


@pytest.fixture
def restarted(monkeypatch):
    """Whether the bundle runner, with eight threads, would restart."""
    spec = SimpleNamespace(__spec__=SimpleNamespace(name="monai.bundle.__main__"))
    monkeypatch.setitem(sys.modules, "__main__", spec)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    calls = []
    monkeypatch.setattr(os, "execve", lambda *arguments: calls.append(arguments))

    def run(device="cpu"):
        threads.shorten_spinning(device)
        return bool(calls)

    return run


def test_runner_restarts_on_a_cpu_only(restarted):
    assert not restarted("cuda")
    assert restarted("cpu")


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_runner_does_not_restart_where_the_environment_decides(name, restarted, monkeypatch):
    monkeypatch.setenv(name, "ACTIVE")
    assert not restarted()


def test_runner_does_not_restart_for_one_thread(restarted, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert not restarted()


@pytest.mark.parametrize("spec", [None, SimpleNamespace(name="pytest.__main__")])
def test_other_programs_never_restart(spec, restarted, monkeypatch):
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=spec))
    assert not restarted()
