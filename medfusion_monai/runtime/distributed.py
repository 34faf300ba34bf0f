"""Processes started by torchrun that train or sample together; without effect in a single process."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

import ignite.distributed as idist
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.nn.parallel import DistributedDataParallel

from medfusion_monai.runtime.errors import first_cause

Result = TypeVar("Result")

# The others wait while the first process reads all images or samples; a lost process is detected without this.
PATIENCE = timedelta(hours=24)


def rank() -> int:
    """Return the number of this process among those that torchrun started; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes that torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def default_device() -> torch.device:
    """Return the GPU of this process on its host, or the CPU if there is no GPU.

    Raises:
        ValueError: if there are more processes on this host than GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= count:
        raise ValueError(
            f"torchrun started more processes on this host than its {count} GPUs: use --nproc_per_node={count}"
        )
    return torch.device("cuda", number)


def start(device: torch.device | str) -> None:
    """Connect the processes started by torchrun; only the first one logs messages below warnings.

    If torchrun itself is killed, each receives SIGTERM.

    Args:
        device: device of this process; NCCL connects GPUs, Gloo CPUs.
    """
    if world_size() == 1 or dist.is_initialized():
        return
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        when_parent_ends(lambda: os.kill(os.getpid(), signal.SIGTERM))  # the agent could no longer end this process
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    if "LOCAL_RANK" in os.environ:  # in a SLURM job ignite reads SLURM's rank, which is the same for all processes
        os.environ["SLURM_LOCALID"] = os.environ["LOCAL_RANK"]
    idist.sync()  # ignite's metrics are averaged over all processes from now on
    if idist.get_rank() > 0:
        logging.disable(logging.INFO)


def when_parent_ends(act: Callable[[], Any], interval: float = 1.0) -> None:
    """Call a function, in a thread of its own, once the process that started this one is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(interval)
        act()

    threading.Thread(target=watch, daemon=True).start()


def finish() -> None:
    """Wait for all processes, then disconnect."""
    idist.barrier()
    idist.finalize()


def share(count: int, rank: int, world_size: int) -> range:
    """Return the indices below ``count`` for a process, or all of them if there are fewer than processes.

    In both cases the mean over the processes, weighted by their counts, is the mean over all indices.
    """
    return range(rank, count, world_size) if count >= world_size else range(count)


def gather(value: Any) -> list[Any]:
    """Return the values of all processes, in the order of their ranks."""
    values = [value] * idist.get_world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def from_first(function: Callable[[], Result]) -> Result:
    """Call a function in the first process and return its result in all processes.

    Raises:
        ValueError: in every process, if the function raised it.
    """
    result: list[Any] = [together(lambda: function() if idist.get_rank() == 0 else None)]
    if idist.get_world_size() > 1:
        dist.broadcast_object_list(result, src=0)
    return result[0]


def together(function: Callable[[], Result]) -> Result:
    """Call a function in each process; an error of one is raised in all, since the others would wait forever.

    Raises:
        ValueError: in every process, if the function raised it in one, also if wrapped by MONAI.
    """
    result: Any = None
    error: ValueError | None = None
    try:
        result = function()
    except Exception as raised:
        cause = first_cause(raised)
        if not isinstance(cause, ValueError):
            raise
        error = cause
    errors = [found for found in gather(error) if found is not None]
    if errors:
        raise errors[0]
    return result


def average(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes."""
    if idist.get_world_size() == 1:
        return tensor
    tensor = tensor.contiguous()
    dist.all_reduce(tensor)
    return tensor / idist.get_world_size()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their means over all processes; parameters must be equal."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if idist.get_world_size() == 1 or not gradients:
        return
    flat = average(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def data_parallel(network: nn.Module, device: torch.device | str) -> nn.Module:
    """Wrap a network to average its gradients over all processes during the backward pass."""
    if idist.get_world_size() == 1:
        return network
    return DistributedDataParallel(network, device_ids=[device] if torch.device(device).type == "cuda" else None)


def report_failure(error: BaseException, patience: float = 10.0) -> None:
    """Record the error that ends this process for torchrun's own message, which is printed last.

    An error that only reports the loss of another process is delayed: torchrun then ends this process before it hides
    the actual error.

    Args:
        error: the error.
        patience: delay in seconds.
    """
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return
    if isinstance(error, dist.DistError) or "gloo/transport" in str(error):
        time.sleep(patience)
    try:
        raise error
    except BaseException:
        get_error_handler().record_exception(error)
