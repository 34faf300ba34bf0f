"""Overfit a small model to ten images, and count what the copy guard lets pass.

    python benchmarks/overfitted.py --output DIR --json FILE

Rule for the figures: 64 samples after 400 and after 800 steps, seeds 0 and 1, each
shown. Passed images are counted as nearer to a training image than 99% or all of the 300 held-out images, by pixels,
and as copies by their code, as in ``canaries.py``. About 5 minutes of one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from canaries import FLIP, SIDE, Bench, Coded, copied

from medfusion_monai.audit.fingerprints import Prints, fingerprint
from medfusion_monai.audit.measure import find_copies, make_guard, passed_images

IMAGES, SAMPLES, AUTOENCODER_STEPS = 10, 64, 500


def main() -> None:
    """Train, sample, and judge the samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the weights and samples")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = [judge(arguments.output, steps, seed) for seed in (0, 1) for steps in (400, 800)]
    for row in result:
        print(json.dumps(row))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def judge(output: Path, steps: int, seed: int) -> dict[str, Any]:
    """Return what the guard refuses and lets pass of the samples of one model."""
    folder = output / f"seed_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(folder, steps, AUTOENCODER_STEPS, SAMPLES, seed)
    name, few = f"ten_{steps}", Coded(IMAGES, 411 + seed)
    bench.sets = {name: few}
    samples = bench.sample(name, bench.diffusion(name, bench.autoencoder()))
    known = Prints(fingerprint(few.distinct), None, torch.arange(IMAGES))
    held_out = bench.held_out.distinct
    others = Prints(fingerprint(held_out), None, IMAGES + torch.arange(len(held_out)))
    generated = Prints(fingerprint(samples), None, torch.full((SAMPLES,), -1))
    copies = find_copies(known, others, generated, torch.zeros(len(held_out), dtype=torch.bool), FLIP)
    guard = make_guard(known, others, copies, (SIDE, SIDE), FLIP)
    assert copies is not None
    assert guard is not None
    refused = guard.check(samples).copies
    by_code = copied(samples, few) >= 0
    near = passed_images(copies, guard.calibration)
    return {
        "seed": seed,
        "steps": steps,
        "refused": int(refused.sum()),
        "passed": int((~refused).sum()),
        **{key: round(near[key]["value"] * near["count"]) for key in near if key != "count"},
        "copies by code": int(by_code.sum()),
        "of them passed": int((by_code & ~refused).sum()),
    }


if __name__ == "__main__":
    main()
