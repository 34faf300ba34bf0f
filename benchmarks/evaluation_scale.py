"""Compare and audit as many images as the paper's largest set, end to end, in one process and in several.

    OMP_NUM_THREADS=1 python benchmarks/evaluation_scale.py --output DIR [--count 15738 --side 256 --processes 1 2]

Two sets of PNG files are drawn once, training images and generated ones; what they show does not matter here, so that
each is one of a few phantoms, moved, with noise of its own. ``medfusion compare`` (one process) and ``medfusion audit``
(torchrun for several) run as a user runs them, with EfficientNet-Lite0 and their defaults, less pictures and
classifiers. Figures: seconds, images per second, and the largest sum of the memory of the processes of a command, twice
a second, in which memory shared between processes counts once (proportional set size).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from common import GIBIBYTE, machine
from PIL import Image

from medfusion_monai.demo.phantoms.families import prepare_phantoms

PHANTOMS = 64
CLASSES = ("no_cardiomegaly", "cardiomegaly")


def main() -> None:
    """Draw, measure and print a row per command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of images and reports")
    parser.add_argument("--count", type=int, default=15738, help="images of each set (15738, the paper's chest X-rays)")
    parser.add_argument("--side", type=int, default=256, help="pixels (256)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="of the audit (1 2)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    folder = arguments.output
    draw_sets(folder, arguments.count, arguments.side)
    rows = []
    for name, command in commands(folder, arguments.processes).items():
        row = {"name": name, "count": arguments.count, **measured(command, folder / f"{name}.log")}
        rows.append({**row, "images_per_second": 2 * arguments.count / row["seconds"]})
        print("{name}: {seconds:.0f} s, {images_per_second:.0f} images/s, peak {peak_gib:.2f} GiB".format(**rows[-1]))
    if arguments.json:
        result = {"machine": machine(torch.device("cpu")), "side": arguments.side, "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def commands(folder: Path, processes: Sequence[int]) -> dict[str, list[str]]:
    """Return the command lines to measure, by name."""
    data, generated = str(folder / "data"), str(folder / "generated")
    compare = [sys.executable, "-m", "medfusion_monai", "compare", "--reference", data, "--split", "training"]
    compare += ["--images", f"generated={generated}", "--classifier-seeds", "--features", "efficientnet-lite0"]
    lines = {"compare": [*compare, "--output", str(folder / "compare")]}
    for number in processes:
        start = [sys.executable] if number == 1 else [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        start += [] if number == 1 else [f"--nproc_per_node={number}"]
        audit = ["-m", "medfusion_monai", "audit", "--dataset-dir", data, "--samples", generated, "--no-pictures"]
        audit += ["--features", "efficientnet-lite0", "--output", str(folder / f"audit_{number}")]
        lines[f"audit_{number}"] = [*start, *audit]
    return lines


def measured(command: Sequence[str], log: Path) -> dict[str, Any]:
    """Run a command without anything that an earlier one kept; return its seconds and peak memory.

    Raises:
        SystemExit: if it fails; its output is in ``log``.
    """
    output = Path(command[command.index("--output") + 1])
    shutil.rmtree(output, ignore_errors=True)
    start, peak = time.perf_counter(), 0
    with open(log, "wb") as file:
        process = psutil.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ)
        while process.poll() is None:
            peak = max(peak, memory(process))
            time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: see {log}")
    return {"seconds": time.perf_counter() - start, "peak_gib": peak / GIBIBYTE}


def memory(process: psutil.Process) -> int:
    """Return the memory of a process and those that it started, in bytes; what they share counts once."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            total += one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has just ended
            continue
    return total


def draw_sets(folder: Path, count: int, side: int) -> None:
    """Write both sets, unless they are there: a datalist with patients of one image each, and folders of classes."""
    wanted = {"count": count, "side": side}
    done = folder / "drawn.json"
    if done.is_file() and json.loads(done.read_text()) == wanted:
        return
    folder.mkdir(parents=True, exist_ok=True)
    prepare_phantoms(folder / "phantoms", PHANTOMS, side, 0, overwrite=True)
    paths = sorted((folder / "phantoms" / "images").rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for seed, name in enumerate(("data", "generated")):
            shutil.rmtree(folder / name, ignore_errors=True)
            for label in CLASSES:
                (folder / name / label).mkdir(parents=True)
            jobs = [
                (pixels, folder / name, range(start, min(start + 500, count)), seed) for start in range(0, count, 500)
            ]
            list(pool.map(_draw, *zip(*jobs, strict=True)))
    entries = [{"image": _file(number), "label": number % 2, "patient": str(number)} for number in range(count)]
    document = {"class_names": list(CLASSES), "training": entries}
    (folder / "data" / "datalist.json").write_text(json.dumps(document))
    done.write_text(json.dumps(wanted))


def _file(number: int) -> str:
    return f"{CLASSES[number % 2]}/{number:06d}.png"


def _draw(pixels: np.ndarray, folder: Path, numbers: range, seed: int) -> None:
    for number in numbers:
        source = np.random.default_rng((seed, number))
        moved = np.roll(pixels[source.integers(len(pixels))], source.integers(-20, 21, 2), (0, 1))
        noisy = moved * source.uniform(0.8, 1.2) + source.normal(0.0, 4.0, moved.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / _file(number))


if __name__ == "__main__":
    main()
