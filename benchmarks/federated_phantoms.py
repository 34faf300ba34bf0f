"""Train over three sites and on all their images in one place, after the same number of steps.

    python benchmarks/federated_phantoms.py --output DIR

Chest phantoms at 64 pixels with the networks of ``demo.yaml``; the sites have 800, 400 and 200 training images. Arms:
``central`` trains on all 1,400, also with another seed, which shows what chance alone does; ``federated`` is
``examples/federated/train.py`` in the simulator, in rounds of --round-steps. Every arm trains an autoencoder of its own
and then its UNet, each site of the federation for as many steps as the central training. The figures are those of
``sampler_choice.py``: distance, precision and recall by features of EfficientNet-Lite0 against all training images, and
the AUC of the label by classifiers of real images, of as many samples of each class from the same seeds.

The rule, set before the first result: federated training keeps up if the ratio of its distance to that of central
training is at most 1.3, and so is the end of its 95% interval. Intervals are those of ``few_steps.py``: the
delete-a-group jackknife with ten groups of images, paired by their seeds. They do not cover the chance of another
training, so the ratio of the other seed stands beside it.

Kill it at any time; the same command continues.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from few_steps import measured, ratio
from sampler_choice import REAL, Judge, sample
from study.store import Store

from medfusion_monai.data.datalist import read_datalist
from medfusion_monai.data.pixels import fingerprint
from medfusion_monai.data.preparing.splits import SPLITS
from medfusion_monai.demo.phantoms.families import prepare_phantoms
from medfusion_monai.model import load
from medfusion_monai.sites.site_file import write_site

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "medfusion_cxr"
OVERLAYS = ["demo.yaml"]
SITES = {"north": 4, "south": 2, "west": 1}
"""Shares of the images."""
IMAGES, SIZE, FRACTIONS = 2000, 64, (0.7, 0.05, 0.25)
CENTRAL, OTHER_SEED, FEDERATED = "central", "central, other seed", "federated"
SEEDS = {CENTRAL: 0, OTHER_SEED: 1}
MOST = 1.3
KEYS = {"device": "cpu", "image_size": [SIZE, SIZE], "trial_step": False, "check_files": False, "val_images": 64}
"""Keys of every training."""


def main() -> None:
    """Train, sample and measure what is missing, and print the table and the verdict."""
    arguments = parse()
    data = arguments.output / "data"
    prepare_phantoms(data, num_images=IMAGES, size=SIZE, fractions=FRACTIONS)
    store = Store(arguments.output)
    names = yaml.safe_load((BUNDLE / "configs" / "train.yaml").read_text())["class_names"]
    items = {split: read_datalist(data, split, names) for split in ("training", "test")}
    steps = ("autoencoder_steps", "diffusion_steps", "round_steps", "samples")
    claimed = {name: getattr(arguments, name) for name in steps}
    store.claim({**claimed, "training_images": fingerprint(items["training"]), "sites": SITES})
    judge = None
    for arm in (CENTRAL, FEDERATED, OTHER_SEED):
        if store.read(arm) is None:
            train(arm, arguments)
            model = load(models_of(arm, arguments.output), "cpu")
            judge = judge or Judge(model, items)
            store.write(arm, measured(judge, *sample(model, {}, arguments.samples, seed=0)))
            print(f"{arm}: {store.read(arm)}", flush=True)
    if store.read(REAL) is None:
        store.write(REAL, (judge or Judge(load(models_of(CENTRAL, arguments.output), "cpu"), items)).judge_real())
    rows = {name: store.read(name) for name in (CENTRAL, OTHER_SEED, FEDERATED, REAL)}
    print(table(rows))
    print(verdict(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of everything that is finished")
    parser.add_argument("--autoencoder-steps", type=int, default=600, help="a multiple of --round-steps")
    parser.add_argument("--diffusion-steps", type=int, default=1000, help="likewise")
    parser.add_argument("--round-steps", type=int, default=100, help="steps of each site in a round")
    parser.add_argument("--samples", type=int, default=1000, help="images of each arm, at least 40")
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser.parse_args()


def models_of(arm: str, output: Path) -> Path:
    """Return the folder of an arm's weights."""
    return output / arm.replace(", ", "_").replace(" ", "_") / "models"


def train(arm: str, arguments: argparse.Namespace) -> None:
    """Train an arm, or continue its training."""
    command = federated_command(arguments) if arm == FEDERATED else central_command(arm, arguments)
    environment = {"PYTHONWARNINGS": "ignore", **os.environ, "PYTHONPATH": str(ROOT)}
    with (arguments.output / f"{models_of(arm, arguments.output).parent.name}.log").open("ab") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=environment)


def central_command(arm: str, arguments: argparse.Namespace) -> list[str]:
    """Return the command that trains on all images in one place."""
    models = models_of(arm, arguments.output)
    keys = {**KEYS, "autoencoder_steps": arguments.autoencoder_steps, "diffusion_steps": arguments.diffusion_steps}
    keys |= {"dataset_dir": str(arguments.output / "data"), "model_dir": str(models), "seed": SEEDS[arm]}
    keys |= {"output_dir": str(models.parent / "runs")}
    files = str([str(BUNDLE / "configs" / name) for name in ("train.yaml", *OVERLAYS)])
    words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    return [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", files, *words]


def federated_command(arguments: argparse.Namespace) -> list[str]:
    """Write data lists and files of the sites, and return the command that trains over them."""
    folder = models_of(FEDERATED, arguments.output).parent
    files = folder / "sites"
    everything = json.loads((arguments.output / "data" / "datalist.json").read_text())
    for name, own in zip(SITES, shared_out(everything, list(SITES.values())), strict=True):
        place = (folder / "site_folders" / name).resolve()
        place.mkdir(parents=True, exist_ok=True)
        for entry in (entry for split in SPLITS for entry in own[split]):
            entry["image"] = os.path.relpath(arguments.output / "data" / entry["image"], place)
        (place / "datalist.json").write_text(json.dumps(own))
        places = {"dataset_dir": place, "model_dir": place / "models", "output_dir": place / "runs"}
        write_site(files, name, BUNDLE, OVERLAYS, KEYS, **places)
    options = {
        "bundle": BUNDLE,
        "site-files": files,
        "set": f"image_size={json.dumps(KEYS['image_size'])}",
        "autoencoder-rounds": arguments.autoencoder_steps // arguments.round_steps,
        "rounds": arguments.diffusion_steps // arguments.round_steps,
        "steps": arguments.round_steps,
        "output": folder,
    }
    words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
    program = str(ROOT / "examples" / "federated" / "train.py")
    return [sys.executable, program, "--overlays", *OVERLAYS, "--sites", *SITES, *words]


def shared_out(datalist: Mapping[str, Any], shares: Sequence[int]) -> list[dict[str, Any]]:
    """Return a data list per site, with its share of each split; every entry goes to one site."""
    names = datalist["class_names"]
    parts: list[dict[str, Any]] = [{"class_names": names, **{split: [] for split in SPLITS}} for _ in shares]
    turns = [site for site, share in enumerate(shares) for _ in range(share)]
    for split in SPLITS:
        for label in range(len(names)):
            own = [entry for entry in datalist[split] if entry["label"] == label]
            for number, entry in enumerate(own):
                parts[turns[number % len(turns)]][split].append(dict(entry))
    return parts


def keeps_up(rows: Mapping[str, Mapping[str, Any]]) -> bool:
    """Apply the rule; what cannot be told does not keep up."""
    value, _, high = ratio(rows[FEDERATED], rows[CENTRAL], "fid")
    return value <= MOST and high <= MOST


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return all figures as Markdown."""
    lines = ["| | distance | ratio to central | precision | recall | label AUC |", "|" + "---|" * 6]
    for name, row in rows.items():
        against = name not in (CENTRAL, REAL)
        compared = "{:.3f} ({:.3f} to {:.3f})".format(*ratio(row, rows[CENTRAL], "fid")) if against else ""
        figures = " | ".join(f"{row[figure]:.3f}" for figure in ("precision", "recall", "auc"))
        lines.append(f"| {name} | {row['fid']:.1f} | {compared} | {figures} |")
    return "\n".join(lines)


def verdict(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the outcome of the rule as a sentence."""
    word = "keeps up" if keeps_up(rows) else "does not keep up"
    return f"federated training {word} with central training by the rule (at most {MOST})"


if __name__ == "__main__":
    main()
