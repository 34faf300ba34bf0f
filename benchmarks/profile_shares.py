"""Where the time of a step goes: shares of convolutions, normalisation, optimizer and the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "optimizer": ("Optimizer.step", "adamw"),
    "averaged weights": ("averaged weights",),
    "clipping": ("clip_grad", "linalg_vector_norm", "foreach_norm"),
    "normalisation": ("norm",),
    "convolution": ("conv",),
    "activation": ("silu",),
    "linear": ("addmm", "aten::mm", "linear"),
    "casts and copies": ("copy", "contiguous", "to_copy", "aten::to"),
    "concatenation": ("aten::cat",),
}
"""Kinds and what the names of their operations hold; an operation belongs to its outermost caller's kind."""


def profile_shares(procedure: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Share of each kind of operation in one call's time on the device, largest first."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as recorded:
        procedure()
    times: dict[str, float] = defaultdict(float)
    for event in recorded.events() or []:
        own = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        times[_kind(event)] += own
    total = sum(times.values()) or 1.0
    return {kind: time / total for kind, time in sorted(times.items(), key=lambda pair: -pair[1])}


def _kind(event: Any) -> str:
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    for name in reversed(names):
        for kind, parts in KINDS.items():
            if any(part.lower() in name.lower() for part in parts):
                return kind
    return "other"


def print_shares(profiles: dict[str, dict[str, float]]) -> None:
    """Print where the time went."""
    for name, shares in profiles.items():
        print(f"{name}: " + ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items() if share >= 0.005))
