"""Distributed processes: each test runs two of them, connected by Gloo."""

import logging
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import ignite.distributed as idist
import numpy as np
import pytest
import torch
from ignite.metrics import Average
from torch import nn
from torch.nn import functional as F

from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.runtime import distributed
from medfusion_monai.runtime.distributed import average, average_gradients, data_parallel, from_first, gather, share

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_mean_over_the_shares_is_the_mean_over_all(count, world_size):
    shares = [share(count, rank, world_size) for rank in range(world_size)]
    assert all(len(numbers) > 0 for numbers in shares)
    taken = [number for numbers in shares for number in numbers]
    assert sum(taken) / len(taken) == pytest.approx((count - 1) / 2)
    assert count < world_size or sorted(taken) == list(range(count))


def test_values_of_all_processes_are_gathered_in_order(two_processes):
    assert two_processes(lambda rank: gather({"rank": rank})) == [[{"rank": 0}, {"rank": 1}]] * 2


@pytest.mark.parametrize("value", [3, "text", None, (1, 2)])
def test_values_of_any_kind_are_gathered_one_per_process(value, two_processes):
    assert gather(value) == [value]
    assert two_processes(lambda rank: gather(value)) == [[value, value]] * 2


def test_average_is_that_of_all_processes(two_processes):
    for mean in two_processes(lambda rank: average(torch.tensor([1.0, 10.0]) * (rank + 1)).tolist()):
        assert mean == [1.5, 15.0]


def test_gradients_become_those_of_the_batches_together(two_processes):
    def gradients(rank):
        network = nn.Linear(2, 1)
        nn.init.ones_(network.weight)
        frozen = nn.Parameter(torch.zeros(3))
        batches = torch.tensor([[[1.0, 2.0]], [[5.0, 10.0]]])
        network(batches[rank]).square().mean().backward()
        before = network.weight.grad.clone()
        average_gradients([*network.parameters(), frozen])
        return before.numpy(), network.weight.grad.numpy(), frozen.grad

    (first, both, none), (second, same, _) = two_processes(gradients)
    assert not np.allclose(first, second)
    assert np.array_equal(both, same)
    assert np.allclose(both, (first + second) / 2)
    assert none is None


def test_wrapped_network_has_the_gradients_of_the_batches_together(two_processes):
    images, targets = torch.rand(6, 3), torch.rand(6, 1)
    network = nn.Linear(3, 1)
    F.l1_loss(network(images), targets).backward()

    def gradient(rank):
        network.zero_grad()
        mine, wrapped = slice(rank * 3, rank * 3 + 3), data_parallel(network, "cpu")
        F.l1_loss(wrapped(images[mine]), targets[mine]).backward()
        return network.weight.grad.tolist()

    for found in two_processes(gradient):
        torch.testing.assert_close(torch.tensor(found), network.weight.grad)


def test_first_process_decides_for_all(two_processes):
    assert two_processes(lambda rank: from_first(lambda: ["found by", rank])) == [["found by", 0]] * 2


def test_user_error_of_the_first_process_is_raised_in_all(two_processes):
    def check():
        raise DataError("image 7 is no image")

    for error in two_processes(lambda rank: from_first(check)):
        assert type(error) is DataError
        assert str(error) == "image 7 is no image"


def test_metrics_are_averaged_by_count(two_processes):
    def mean(rank):
        metric = Average()
        for value in [1.0, 2.0, 3.0] if rank == 0 else [10.0]:
            metric.update(value)
        return metric.compute()

    assert two_processes(mean) == [4.0, 4.0]


@pytest.mark.parametrize("told", [None, "0"], ids=["salloc", "srun"])
def test_rank_on_a_host_is_that_of_torchrun_in_a_slurm_job(told, two_processes, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.delenv("SLURM_LOCALID", raising=False)
    if told is not None:
        monkeypatch.setenv("SLURM_LOCALID", told)
    assert two_processes(lambda rank: (idist.get_local_rank(), os.environ["LOCAL_RANK"])) == [(0, "0"), (1, "1")]


def test_only_the_first_process_speaks(two_processes):
    heard = two_processes(lambda rank: [logging.getLogger().isEnabledFor(x) for x in (logging.INFO, logging.WARNING)])
    assert heard[1] == [False, True]


def test_processes_part_and_are_on_their_own_again(two_processes):
    def part(rank):
        together = idist.get_world_size()
        distributed.finish()
        return together, idist.get_world_size(), gather(rank), average(torch.ones(1)).item()

    assert two_processes(part) == [(2, 1, [rank], 1.0) for rank in range(2)]


def test_process_without_torchrun_is_the_only_one(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (distributed.rank(), distributed.world_size()) == (0, 1)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="more processes on this host than its 2 GPUs: use --nproc_per_node=2"):
        distributed.default_device()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.default_device() == torch.device("cuda:1")


def test_error_of_one_process_ends_all_and_is_what_torchrun_shows_last(tmp_path):
    script = tmp_path / "work.py"
    script.write_text(
        "from medfusion_monai.bundle.overrides import repeat_errors_last\n"
        "from medfusion_monai.runtime import distributed\n"
        "repeat_errors_last()\n"
        "distributed.start('cpu')\n"
        "if distributed.rank() == 1:\n"
        "    raise ValueError('this image is no image')\n"
        "distributed.gather(0)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*TORCHRUN, str(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    assert result.returncode != 0
    assert result.stderr.rstrip(" =\n").endswith("ValueError: this image is no image")
    assert "Connection closed" not in result.stderr


def test_process_ends_when_torchruns_agent_is_killed():
    reading, writing = os.pipe()
    agent = os.fork()
    if agent == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            if os.fork() == 0:
                distributed.when_parent_ends(lambda: os.kill(os.getpid(), signal.SIGTERM), interval=0.05)
                time.sleep(60)  # SIGTERM comes before
            time.sleep(0.5)  # the agent, which is gone then
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(agent, 0)
    ended, _, _ = select.select([reading], [], [], 40)  # the pipe is closed once the last process is gone
    assert ended
    assert os.read(reading, 1) == b""
    os.close(reading)
