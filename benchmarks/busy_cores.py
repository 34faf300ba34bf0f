"""Time a training step beside other programs: threads that spin while they wait, that sleep, or one alone.

    python benchmarks/busy_cores.py --json FILE

A busy program is a Python loop on one core. Each row is a process of its own; medians of 15 steps of the demo's phase
two after 5. About 8 minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

WAYS = {
    "default": {},
    "short spinning": {"GOMP_SPINCOUNT": "1000"},
    "no spinning": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {},
}
WARM_UP, STEPS = 5, 15


def main() -> None:
    """Time all ways beside no, one and two busy programs, in turn."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--measure", action="store_true", help="time the steps of this process")
    arguments = parser.parse_args()
    if arguments.measure:
        print(_seconds())
        return
    rows: dict[str, list[float]] = {}
    for busy in (0, 1, 2):
        for _ in range(arguments.repeats):
            for way, environment in WAYS.items():
                threads = 1 if way == "one thread" else arguments.threads
                own = {**environment, "OMP_NUM_THREADS": str(threads)}
                rows.setdefault(f"{way}, {busy} busy", []).append(_beside(busy, own))
    for name, seconds in rows.items():
        print(f"{name:<20} {statistics.median(seconds):7.3f} s  ({min(seconds):.3f} to {max(seconds):.3f})")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def _beside(busy: int, environment: dict[str, str]) -> float:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        command = [sys.executable, __file__, "--measure"]
        result = subprocess.run(command, env=inherited | environment, check=True, capture_output=True, text=True)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    return float(result.stdout)


def _seconds() -> float:
    """Return the median time of a step of the demo's UNet."""
    import torch

    from medfusion_monai.networks import UNet

    torch.manual_seed(0)
    unet = UNet(channels=(64, 64, 96, 128), embedding_channels=256, norm_groups=16)
    optimizer = torch.optim.AdamW(unet.parameters(), fused=True)
    latents, timesteps = torch.randn(32, 8, 8, 8), torch.randint(0, 1000, (32,))
    labels = torch.randint(0, 2, (32,))
    seconds = []
    for _ in range(WARM_UP + STEPS):
        start = time.perf_counter()
        optimizer.zero_grad()
        unet(latents, timesteps=timesteps, class_labels=labels).abs().mean().backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARM_UP:])


if __name__ == "__main__":
    main()
