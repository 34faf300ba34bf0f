"""Fixtures that all tests share."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import pickle
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from medfusion_monai.runtime.distributed import start
from medfusion_monai.runtime.errors import first_cause

VECTORS = Path(__file__).parent / "vectors"


@pytest.fixture(scope="session")
def vectors() -> Callable[[str], tuple[dict[str, Tensor], dict[str, Any]]]:
    """Load tensors recorded from the published code, and the arguments behind them, by the name of their file."""

    def load(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        with safe_open(str(VECTORS / f"{name}.safetensors"), "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, no dict
            return tensors, json.loads(file.metadata()["case"])

    return load


@pytest.fixture(scope="session")
def published_state(vectors: Callable) -> Callable[[str], dict[str, Tensor]]:
    """Load the state dict, with published names, that a file of recorded tensors holds."""

    def load(name: str) -> dict[str, Tensor]:
        tensors, _ = vectors(name)
        return {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}

    return load


@pytest.fixture(scope="session")
def relative_error() -> Callable[[Tensor, Tensor], float]:
    """Give the largest absolute difference over the largest absolute expected value."""

    def measure(actual: Tensor, expected: Tensor) -> float:
        assert actual.numel() == expected.numel(), (actual.shape, expected.shape)
        difference = actual.detach().double().reshape(expected.shape) - expected.double()
        return (difference.abs().max() / expected.double().abs().max()).item()

    return measure


@pytest.fixture(scope="module")
def one_thread():
    """Have one process sum in the order of the two, which have one thread each: another order may tip a rounding."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def two_processes() -> Callable[..., list[Any]]:
    """Call a function with rank 0 and with rank 1 in two connected processes, and give what each returns or raises."""

    def run(function: Callable[[int], Any], connect: bool = True, timeout: float = 120.0) -> list[Any]:
        port = _free_port()
        context = multiprocessing.get_context("fork")
        pipes, processes = [], []
        for rank in range(2):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(function, rank, port, theirs, connect), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        deadline, outcomes = time.monotonic() + timeout, []
        try:
            for pipe in pipes:
                assert pipe.poll(max(0.0, deadline - time.monotonic())), "the processes wait for each other for ever"
                outcomes.append(pickle.loads(pipe.recv_bytes()))
            return outcomes
        finally:
            for process in processes:
                process.kill()

    return run


def _free_port() -> int:
    """Give a port below those that the system hands out by itself, which it could give away before it is used."""
    first = 20_000 + os.getpid() % 1_000 * 10  # other runs of these tests look elsewhere
    for port in range(first, first + 1_000):
        with socket.socket() as free:
            try:
                free.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("there is no free port")


def _work(function: Callable[[int], Any], rank: int, port: int, pipe: Any, connect: bool) -> None:
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()})
    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    try:
        if connect:
            start("cpu")
        outcome = function(rank)
    except Exception as error:
        outcome = first_cause(error)
    pipe.send_bytes(pickle.dumps(outcome))


if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are taken by as many workers
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_finish():
    """Leave what is imported out of all garbage collections to come: they would look at millions of objects."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()
