"""Threads of PyTorch on a CPU that others use as well."""

from __future__ import annotations

import logging
import os
import sys

import torch

logger = logging.getLogger(__name__)

SPIN, POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"
SHORT = "1000"
"""Rounds that a thread spins before it sleeps; by default it is 300,000."""


def shorten_spinning(device: torch.device | str) -> None:
    """Restart the bundle runner with threads that soon sleep while they wait, if it is to run several on a CPU.

    By default OpenMP's threads spin for long while they wait for each other. Where another program takes the core of
    one of them, all wait for its next time slice at every operation: a training step was seen to take 50 times as long.
    OpenMP reads its environment when PyTorch is loaded, so only a new program can change it. The number of threads,
    and with it every bit of a result, stays the same.

    Nothing happens if the environment sets ``GOMP_SPINCOUNT`` or ``OMP_WAIT_POLICY``, in other programs than
    ``python -m monai.bundle``, with one thread, and on other devices.

    Args:
        device: where networks run.
    """
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    if main is None or main.name != "monai.bundle.__main__" or torch.device(device).type != "cpu":
        return
    if torch.get_num_threads() == 1 or POLICY in os.environ or SPIN in os.environ:
        return
    logger.info("restarting with %s=%s, for a CPU that other programs use too", SPIN, SHORT)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, SPIN: SHORT})
