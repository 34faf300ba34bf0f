"""Measure time and memory of improved precision and recall on sets as large as the paper's.

Each measurement runs in a process of its own, whose peak memory is then that measurement's.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GIBIBYTE = 2**30
ROW = (
    "{name:16} {count:6} samples: {seconds:6.1f} s ({cpu_seconds:6.1f} s of CPU), peak {peak_gib:.2f} GiB, "
    "of which features {features_gib:.2f}, work {work_gib:.2f}; precision {precision:.4f}, recall {recall:.4f}"
)


def main() -> None:
    """Measure at half and at full count, and torch-fidelity's procedure beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=15738, help="samples a set; the paper's chest X-rays by default")
    parser.add_argument("--dimensions", type=int, default=2048, help="features a sample; Inception's by default")
    parser.add_argument("--no-reference", action="store_true", help="leave out torch-fidelity, whose memory is large")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    plan = [("medfusion_monai", arguments.count // 2), ("medfusion_monai", arguments.count)]
    if not arguments.no_reference:
        plan += [("torch_fidelity", arguments.count // 2), ("torch_fidelity", arguments.count)]
    rows = []
    for name, count in plan:
        rows.append(in_own_process(name, count, arguments.dimensions))
        print(ROW.format(**rows[-1]), flush=True)
    ratios = compare(rows)
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    if arguments.json:
        machine = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
        result = {"torch": torch.__version__, "machine": machine, "rows": rows, "ratios": ratios}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def compare(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Ratios of the measurements, each set of rows being half count, then full count."""
    blockwise = rows[:2]
    ratios = {"work memory, full count over half": blockwise[1]["work_gib"] / blockwise[0]["work_gib"]}
    if len(rows) == 4:
        reference = rows[2:]
        ratios["work memory of torch-fidelity, full count over half"] = (
            reference[1]["work_gib"] / reference[0]["work_gib"]
        )
        ratios["peak memory, torch-fidelity over medfusion_monai"] = reference[1]["peak_gib"] / blockwise[1]["peak_gib"]
        ratios["time, torch-fidelity over medfusion_monai"] = reference[1]["seconds"] / blockwise[1]["seconds"]
        ratios["CPU time, torch-fidelity over medfusion_monai"] = (
            reference[1]["cpu_seconds"] / blockwise[1]["cpu_seconds"]
        )
    return ratios


def in_own_process(name: str, count: int, dimensions: int) -> dict[str, Any]:
    """Run ``measure`` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, name, count, dimensions).result()


def measure(name: str, count: int, dimensions: int) -> dict[str, Any]:
    """Seconds, those of all threads together, peak memory, and what of it features and the work added, in GiB."""
    procedure = PROCEDURES[name]()
    before = peak()
    real, fake = features(count, dimensions, seed=0), features(count, dimensions, seed=1)
    with_features = peak()
    start, cpu_start = time.perf_counter(), time.process_time()
    precision, recall = procedure(real, fake)
    return {
        "name": name,
        "count": count,
        "dimensions": dimensions,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start,
        "peak_gib": peak() / GIBIBYTE,
        "features_gib": (with_features - before) / GIBIBYTE,
        "work_gib": (peak() - with_features) / GIBIBYTE,
        "precision": precision,
        "recall": recall,
    }


def peak() -> int:
    """Largest memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def features(count: int, dimensions: int, seed: int) -> Tensor:
    """Random features (N, D), at least 0 as Inception's are, written part by part into their place."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.empty(count, dimensions)
    for part in values.split(1024):
        part.normal_(generator=generator).clamp_(min=0)
    return values


def ours() -> Callable[[Tensor, Tensor], tuple[float, float]]:
    """Our function, which goes over the distances block by block."""
    from medfusion_monai.evaluation.metrics.precision_recall import improved_precision_recall

    return improved_precision_recall


def torch_fidelity() -> Callable[[Tensor, Tensor], tuple[float, float]]:
    """torch-fidelity's, which keeps all distances."""
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    return lambda real, fake: calculate_precision_recall_full(fake, real, 3)


PROCEDURES = {"medfusion_monai": ours, "torch_fidelity": torch_fidelity}

if __name__ == "__main__":
    main()
