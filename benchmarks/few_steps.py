"""Whether a few steps of tuned weights are as good as the many of the weights that they were tuned from.

    python benchmarks/few_steps.py --model-file models/starter --tuned models/few_steps --dataset-dir DATA --output DIR

Every arm samples the same labels (the classes take turns) from the same image seeds: the untuned weights by the sampler
that they name, then in 8, 4, 2 and 1 steps of UniPC, and each of the tuned ones by its own. The figures are those of
``sampler_choice.py``: distance, precision and recall by features of EfficientNet-Lite0, or of --features, against all
training images, and the AUC of the label by classifiers of real images.

The rule, set before the first result: an arm equals the untuned weights if the 95% interval of the ratio of its
distance to theirs ends below 1.10, and those of the ratios of recall and of label AUC begin above 0.90. Intervals are
those of the delete-a-group jackknife of the logarithms, with ten groups of images, paired by their seeds. They do not
cover the chance of another training.

Kill it at any time; the same command continues with the arms that are missing in --output.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sampler_choice import REAL, Judge, sample
from scipy.stats import t as student
from study.store import Store
from torch import Tensor

from medfusion_monai.data.datalist import read_datalist
from medfusion_monai.data.pixels import fingerprint
from medfusion_monai.model import Model, load
from medfusion_monai.runtime.files import file_sha256

UNTUNED = "untuned"
FEWER = (8, 4, 2, 1)
FEWER_BY = {"sampler": "unipc", "spacing": "logsnr", "eta": 0.0}
GROUPS = 10
MARGIN = 0.10


def main() -> None:
    """Sample and measure what is missing, and print the table and what is equal by the rule."""
    arguments = parse()
    untuned = load(arguments.model_file, "cpu")
    tuned = [load(path, "cpu") for path in arguments.tuned]
    items = {split: read_datalist(arguments.dataset_dir, split, untuned.class_names) for split in ("training", "test")}
    arms: dict[str, tuple[Model, dict[str, Any]]] = {UNTUNED: (untuned, {})}
    arms |= {f"{UNTUNED}, {steps} steps": (untuned, {**FEWER_BY, "num_inference_steps": steps}) for steps in FEWER}
    arms |= {f"tuned, {model.info['sampler']['num_inference_steps']} steps": (model, {}) for model in tuned}
    store = Store(arguments.output)
    store.claim(
        {
            **{f"arm {name}": file_sha256(model.path) for name, (model, _) in arms.items()},
            "training_images": fingerprint(items["training"]),
            "test_images": fingerprint(items["test"]),
            "samples": arguments.samples,
            "features": arguments.features,
        }
    )
    judge = None
    for name, (model, settings) in arms.items():
        if store.read(name) is None:
            judge = judge or Judge(untuned, items, arguments.features)
            start = time.process_time()
            images, labels = sample(model, settings, arguments.samples, arguments.seed)
            seconds = time.process_time() - start
            store.write(name, measured(judge, images, labels) | {"cpu_seconds": seconds})
            print(f"{name}: {store.read(name)}", flush=True)
    if store.read(REAL) is None:
        store.write(REAL, (judge or Judge(untuned, items, arguments.features)).judge_real())
    rows = {name: store.read(name) for name in (*arms, REAL)}
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-file", type=Path, required=True, help="weights, or a folder that contains them")
    parser.add_argument("--tuned", type=Path, nargs="*", default=[], help="likewise, tuned from these for few steps")
    parser.add_argument("--dataset-dir", type=Path, required=True, help="folder of medfusion prepare")
    parser.add_argument("--output", type=Path, required=True, help="folder of everything that is finished")
    parser.add_argument("--samples", type=int, default=2000, help="images of each arm, at least 40")
    parser.add_argument("--features", default="efficientnet-lite0", help="extractor, as evaluation takes it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser.parse_args()


def measured(judge: Judge, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return the figures of all images, and of those outside of each group."""
    features, probabilities = judge.features(images), judge.probabilities(images)
    groups = torch.arange(len(images)) // 2 % GROUPS  # two labels take turns, and each group has both
    without = []
    for group in range(GROUPS):
        kept = groups != group
        without.append(judge.figures(features[kept], [each[kept] for each in probabilities], labels[kept]))
    return {**judge.figures(features, probabilities, labels), "without": without}


def ratio(arm: Mapping[str, Any], base: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    """Return the ratio of a figure to that of the base, and its 95% interval; nan where one is 0."""
    values = [(arm[name], base[name])]
    values += [(one[name], other[name]) for one, other in zip(arm["without"], base["without"], strict=True)]
    if min(min(pair) for pair in values) <= 0:
        return (math.nan,) * 3
    whole, *parts = [math.log(one / other) for one, other in values]
    middle = sum(parts) / GROUPS
    error = math.sqrt((GROUPS - 1) / GROUPS * sum((part - middle) ** 2 for part in parts))
    reach = float(student.ppf(0.975, GROUPS - 1)) * error
    return math.exp(whole), math.exp(whole - reach), math.exp(whole + reach)


def is_equal(arm: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Apply the rule; what cannot be told is not equal."""
    lows = [ratio(arm, base, name)[1] for name in ("recall", "auc")]
    return ratio(arm, base, "fid")[2] < 1 + MARGIN and all(low > 1 - MARGIN for low in lows)


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return all figures as Markdown."""
    base = rows[UNTUNED]
    lines = [
        "| | distance | ratio | recall | ratio | label AUC | ratio | precision | CPU seconds | equal by the rule |",
        "|" + "---|" * 10,
    ]
    for name, row in rows.items():
        cells = [name]
        for figure, digits in (("fid", 1), ("recall", 3), ("auc", 3)):
            cells.append(f"{row[figure]:.{digits}f}")
            others = name not in (UNTUNED, REAL)
            cells.append("{:.3f} ({:.3f} to {:.3f})".format(*ratio(row, base, figure)) if others else "")
        cells.append(f"{row['precision']:.3f}")
        cells.append(f"{row['cpu_seconds']:.0f}" if "cpu_seconds" in row else "")
        cells.append(("yes" if is_equal(row, base) else "no") if name not in (UNTUNED, REAL) else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
