"""Measure the peak memory of phase two at batch 32, ours beside the published procedure, each in its own process.

Published: the encoder in the step, float32, the whole batch at once, AdamW, no averaged weights. Ours: latents from
their store, the device's own precision, fused AdamW and averaged weights, in micro-batches of the same batch; all
once more with gradient checkpointing and with AdamW's moments in 8 bits where the options ask for them; the first
once more without averaged weights, as the published runs had none. Beside each peak stands what the weights,
gradients, moments and averages take, which no step can do without.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import (
    GIBIBYTE,
    build,
    chosen_device,
    machine,
    parser,
    print_machine,
    random_batch,
    read_size,
    timed,
    write_json,
)

TARGETS = {"cpu": 0.75, "cuda": 0.5}
STEPS = 2
FLOAT = 4
"""Bytes of a value of weights, gradients, each of AdamW's two moments, and averages; in 8 bits, a moment takes one."""
ROW = (
    "{name:9} {variant:72} peak {peak_gib:5.2f} GiB, of which Python {baseline_gib:.2f} and network state "
    "{state_gib:.2f}; {seconds:.1f} s a step; ratio {ratio:.2f}, without Python {ratio_without_baseline:.2f}"
)


def main() -> None:
    """Measure the published procedure, then ours in each micro-batch."""
    options = parser(__doc__)
    options.add_argument("--micro-batches", type=int, nargs="+", default=[8], help="images at a time of ours")
    options.add_argument("--checkpointing", action="store_true", help="ours also with gradient checkpointing")
    options.add_argument("--eight-bit-moments", action="store_true", help="ours also with moments of 8 bits")
    arguments = options.parse_args()
    device, size = chosen_device(arguments.device), read_size(arguments.size)
    description = machine(device)
    print_machine(description)
    batch = arguments.batch or size.settings["diffusion_batch_size"]
    print(f"phase two, {size.name} size on {device}, batches of {batch}, {STEPS} steps", flush=True)
    plan: list[dict[str, Any]] = [{"name": "published"}]
    switches = [[False, True][: 1 + wanted] for wanted in (arguments.eight_bit_moments, arguments.checkpointing)]
    for eight_bit, checkpointing, micro_batch in product(*switches, arguments.micro_batches):
        ours = {"micro_batch": micro_batch, "checkpointing": checkpointing, "eight_bit_moments": eight_bit}
        plan.append({"name": "ours", **ours})
    plan.append({**plan[1], "averages": False})
    rows: list[dict[str, Any]] = []
    for case in plan:
        case |= {"size": size.name, "batch": batch, "device": device.type, "precision": arguments.precision}
        rows.append(in_own_process(case))
        rows[-1] |= ratios(rows[-1], rows[0])
        print(ROW.format(**rows[-1]), flush=True)
    target = TARGETS[device.type] if size.name == "full" else None
    best = min(rows[1:-1], key=lambda row: row["ratio"])
    print(f"ratio: {best['ratio']:.2f} by {best['variant']}, to reach {target}")
    claim = "peak memory of phase two, ours over published"
    result = {"claim": claim, "size": size.name, "device": device.type, "batch": batch, "ratio": best["ratio"]}
    write_json(arguments.json, {**result, "target": target, "best": best, "rows": rows, "machine": description})


def ratios(row: dict[str, Any], published: dict[str, Any]) -> dict[str, float]:
    """Peak over the published one, whole and without what Python took before the networks were built."""
    work, published_work = (each["peak_gib"] - each["baseline_gib"] for each in (row, published))
    return {"ratio": row["peak_gib"] / published["peak_gib"], "ratio_without_baseline": work / published_work}


def in_own_process(case: dict[str, Any]) -> dict[str, Any]:
    """Run ``measure`` in a fresh process, whose peak memory is then that measurement's."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, **case).result()


def measure(
    name: str,
    size: str,
    batch: int,
    device: str,
    precision: str | None = None,
    micro_batch: int | None = None,
    checkpointing: bool = False,
    averages: bool = True,
    eight_bit_moments: bool = False,
) -> dict[str, Any]:
    """Take steps and give the peak in GiB, on a GPU that of its allocated memory, and the seconds of the last step."""
    where, sizes = torch.device(device), read_size(size)
    inputs = random_batch(sizes, batch, where, stored=name == "ours")
    if name == "published":
        from published_procedure import PublishedTraining

        baseline = peak(where)
        step: Any = PublishedTraining(build(sizes, where), where)
        variant = "float32, encodes, whole batch"
    else:
        from our_procedure import OurTraining

        baseline = peak(where)
        network = build(sizes, where, gradient_checkpointing=checkpointing)
        step = OurTraining(network, sizes, where, precision, micro_batch, averages, eight_bit_moments)
        variant = f"{step.precision}, micro-batches of {micro_batch}" + (", checkpointing" if checkpointing else "")
        variant += ", moments of 8 bits" if eight_bit_moments else ""
        variant += "" if averages else ", no averaged weights"
    weights = sum(weight.numel() for weight in step.network.unet.parameters())
    bytes_per_weight = 2 * FLOAT + 2 * (1 if eight_bit_moments else FLOAT) + FLOAT * (name == "ours" and averages)
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    seconds = [timed(lambda: step(inputs), where) for _ in range(STEPS)]
    return {
        "name": name,
        "variant": variant,
        "micro_batch": micro_batch or batch,
        "checkpointing": checkpointing,
        "averages": name == "ours" and averages,
        "eight_bit_moments": eight_bit_moments,
        "state_gib": bytes_per_weight * weights / GIBIBYTE,
        "baseline_gib": baseline / GIBIBYTE,
        "peak_gib": peak(where) / GIBIBYTE,
        "seconds": seconds[-1],
        "load_average": os.getloadavg()[0],
    }


def peak(device: torch.device) -> int:
    """Largest memory so far in bytes: of this process, or what tensors took on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # unlike getrusage's, its peak does not begin with that of the parent process
    lines = status.read_text().splitlines() if status.exists() else []
    peaks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return 1024 * (peaks[0] if peaks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    main()
