"""Threads of PyTorch on a CPU that others use as well."""

from __future__ import annotations

import logging
import os
import sys

import torch

logger = logging.getLogger(__name__)

POLICY = "OMP_WAIT_POLICY"
SPIN = "GOMP_SPINCOUNT"


def let_waiting_threads_sleep(device: torch.device | str) -> None:
    """Restart the bundle runner with threads that sleep while they wait, if it is to run several on a CPU.

    By default OpenMP's threads spin while they wait for each other. Where another program takes the core of one of
    them, all wait for its next time slice at every operation: a training step was seen to take 15 times as long.
    OpenMP reads its environment when PyTorch is loaded, so only a new program can change it. The number of threads,
    and with it every bit of a result, stays the same.

    Nothing happens if the environment sets ``OMP_WAIT_POLICY`` or ``GOMP_SPINCOUNT``, in other programs than
    ``python -m monai.bundle``, with one thread, and on other devices.

    Args:
        device: where networks run.
    """
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    if main is None or main.name != "monai.bundle.__main__" or torch.device(device).type != "cpu":
        return
    if torch.get_num_threads() == 1 or POLICY in os.environ or SPIN in os.environ:
        return
    logger.info("restarting with %s=PASSIVE, for a CPU that other programs use too", POLICY)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, POLICY: "PASSIVE"})
