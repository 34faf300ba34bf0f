"""Measure the copy guard: recall on degraded copies, false alarms on other patients, resistance to near-duplicates.

    python benchmarks/copy_guard_power.py [--xrays FOLDER] [--sizes 32 64 128] --json FILE

Rule, set before any figure of the reported half was looked at: settings of the guard are chosen on the development half
(``--half development``: even patient numbers, and phantoms of even draws); reported figures come from the other half,
over draws 0 to 2, each shown and none left out. Each draw has 300 training images, 200 held-out images that calibrate
the guard and up to 500 others for false alarms, each of another patient. Copies are 100 of the training images in each
degradation of ``medfusion_monai.audit.power``. Targets, for the sum over draws: recall of noise, blur and shift by one
pixel at least 90%, of rotation and zoom at least 70%; false alarms at most 1%; with two near-duplicates of training
images (one noisy, one mixed with 30% of another image) among the
held-out ones, the recall of noisy copies stays within 5 points.

About 10 minutes of one core. FOLDER holds ``labels.csv`` (filename, patient_id) and ``images``.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from medfusion_monai.audit.fingerprints import Prints, fingerprint
from medfusion_monai.audit.guard import CopyGuard
from medfusion_monai.audit.measure import find_copies, make_guard
from medfusion_monai.audit.power import DEGRADATIONS, measure_power
from medfusion_monai.audit.statistics import share_figure
from medfusion_monai.demo.phantoms.draw_chest import draw_chest_phantom
from medfusion_monai.runtime.seeds import derive_seed

TRAINING, HELD_OUT, OTHERS, COPIES, DRAWS = 300, 200, 500, 100, 3
TIMED = 50
"""Checks against 1,000 training images of which the median time is taken."""
NOISY = next(iter(DEGRADATIONS))
HALVES = ("reported", "development")
SIZES = (32, 64, 128)


def main() -> None:
    """Measure all sources at all sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--xrays", type=Path, metavar="FOLDER", help="X-rays with labels.csv; none without it")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="height and width (32 64 128)")
    parser.add_argument("--half", choices=HALVES, default=HALVES[0], help="which patients and phantoms (reported)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    half, result = HALVES.index(arguments.half), {}
    for name, size in itertools.product(["phantoms", *(["X-rays"] if arguments.xrays else [])], arguments.sizes):
        draws = []
        for draw in range(DRAWS):
            images = xrays(arguments.xrays, half, draw, size) if name == "X-rays" else phantoms(half, draw, size)
            draws.append(measure(images))
        result[f"{name} {size}"] = {"sum": add(draws), "draws": draws, "seconds": seconds_per_check(images)}
        show(f"{name} {size}", result[f"{name} {size}"])
    if arguments.json:
        arguments.json.write_text(json.dumps({"half": arguments.half, **result}, indent=1) + "\n")


def phantoms(half: int, draw: int, size: int) -> Tensor:
    """Draw 1,000 phantoms (N, 1, size, size), another for each half and draw."""
    first = (2 * draw + half + 1) * 1_000_000
    drawn = [draw_chest_phantom(first + index, index % 2, size)[0] for index in range(TRAINING + HELD_OUT + OTHERS)]
    return torch.stack([torch.from_numpy(image).float() for image in drawn])


def xrays(folder: Path, half: int, draw: int, size: int) -> Tensor:
    """Read one X-ray (1, size, size) each of 1,000 patients of a half, in an order of the draw."""
    first: dict[int, str] = {}
    with (folder / "labels.csv").open() as file:
        for row in csv.DictReader(file):
            first.setdefault(int(row["patient_id"]), row["filename"])
    names = [name for patient, name in first.items() if patient % 2 == 1 - half]
    order = np.random.default_rng(derive_seed("copy guard power", draw)).permutation(len(names))
    images = []
    for index in order[: TRAINING + HELD_OUT + OTHERS]:
        with Image.open(folder / "images" / names[index]) as image:
            images.append(torch.from_numpy(np.asarray(image.convert("L"), dtype=np.float32) / 255)[None])
    return F.interpolate(torch.stack(images), size=(size, size), mode="bilinear", antialias=True)


def guard_of(training: Tensor, held_out: Tensor) -> tuple[CopyGuard, Tensor]:
    """Make the guard as an audit does, and return it with the scores of the held-out images."""
    prints = [fingerprint(images) for images in (training, held_out)]
    known = Prints(prints[0], None, torch.arange(len(training)))
    others = Prints(prints[1], None, len(training) + torch.arange(len(held_out)))
    copies = find_copies(known, others, others.select([0]), torch.zeros(len(held_out), dtype=torch.bool))
    guard = make_guard(known, others, copies, training.shape[-2:], "horizontal")
    assert copies is not None
    assert guard is not None
    return guard, copies.held_out.scores


def measure(images: Tensor) -> dict[str, Any]:
    """Measure one draw of images (N, 1, H, W)."""
    training, held_out, others = images.split([TRAINING, HELD_OUT, len(images) - TRAINING - HELD_OUT])
    guard, scores = guard_of(training, held_out)
    power = measure_power(guard, training[:COPIES], scores)
    alarms = int(guard.check(others).copies.sum())
    near = torch.cat([DEGRADATIONS[NOISY](training[-1:]), 0.7 * training[-2:-1] + 0.3 * held_out[:1]])
    blinded, _ = guard_of(training, torch.cat([held_out, near]))
    still = int(blinded.check(DEGRADATIONS[NOISY](training[:COPIES])).copies.sum())
    found = {name: round(figure["value"] * COPIES) for name, figure in power["recall"].items()}
    return {
        "calibration": guard.calibration._asdict(),
        "with near-duplicates": blinded.calibration._asdict(),
        "found": {**found, f"{NOISY}, near-duplicates held out": still},
        "copies": COPIES,
        "alarms": alarms,
        "others": len(others),
    }


def add(draws: list[dict[str, Any]]) -> dict[str, Any]:
    """Return recall and false alarms over all draws, with their intervals."""
    copies = sum(draw["copies"] for draw in draws)
    found = {name: sum(draw["found"][name] for draw in draws) for name in draws[0]["found"]}
    alarms = share_figure(sum(draw["alarms"] for draw in draws), sum(draw["others"] for draw in draws))
    recall = {name: share_figure(number, copies).as_dict() for name, number in found.items()}
    return {"recall": recall, "false_alarms": alarms.as_dict()}


def seconds_per_check(images: Tensor) -> float:
    """Return the median time of checking one image against 1,000 training images, on one core."""
    guard, _ = guard_of(images, DEGRADATIONS[NOISY](images[:HELD_OUT].flip(-2)))
    times = []
    for image in images[:TIMED]:
        start = time.perf_counter()
        guard.check(image[None])
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def show(name: str, result: dict[str, Any]) -> None:
    """Print the figures of a source."""
    thresholds = ", ".join(f"{draw['calibration']['threshold']:.3f}" for draw in result["draws"])
    print(f"{name}: thresholds {thresholds}; {1000 * result['seconds']:.0f} ms per check")
    for title, figure in [*result["sum"]["recall"].items(), ("false alarms", result["sum"]["false_alarms"])]:
        key = [draw["alarms"] if title == "false alarms" else draw["found"][title] for draw in result["draws"]]
        value, low, high = (100 * figure[part] for part in ("value", "low", "high"))
        print(f"  {title}: {value:.1f}% ({low:.1f} to {high:.1f}), by draw {key}", flush=True)


if __name__ == "__main__":
    main()
