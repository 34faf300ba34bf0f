"""Compare the diffusion model with the GAN on the same images, for equal processor seconds of training.

    python benchmarks/against_gan.py --dataset-dir DATA --overlay small.yaml --seconds 10000 --output DIR [--plan]

The rule, set before the first result:

What is compared
    The diffusion model of the overlay, both phases, with its own keys, and the GAN of ``gan.yaml``. Each training gets
    --seconds of processor time: their steps follow from the seconds of a step, which are measured first. Phases of the
    diffusion model keep the ratio of their steps. What a training really took is in the table; of one that was killed,
    since its last start.
The GAN is tuned, the diffusion model is not
    Its keys were chosen on other images, so that tuning favours the GAN: every pair of GRID is trained once, with seed
    100 and a quarter of the seconds, and the pair with the lowest distance is taken for all seeds.
Figures
    Of averaged weights and as many samples of each class: Fréchet distance, precision and recall against the training
    images by features of EfficientNet-Lite0, AUC of three small classifiers of real images on the samples. The last
    row, real test images, is what a perfect model would reach with as many images as there are.
Verdict
    One model is better if the differences of the distances of the same seed have the same sign for at least four seeds
    and their mean exceeds their range. A better distance with a recall lower by more than 0.02, or an AUC lower by more
    than 0.03, is reported as such. Otherwise there is no verdict.

Kill it at any time; the same command continues, also within a training.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from sampler_choice import REAL, Judge, sample
from study.store import Store

from medfusion_monai.data.datalist import read_datalist
from medfusion_monai.data.pixels import fingerprint
from medfusion_monai.model import load

GRID = list(product([1.0e-4, 2.0e-4, 5.0e-4], [0.1, 1.0]))
"""First learning rates, which fall to a quarter, and factors of the published weights of the penalties."""
TUNING_SEED, TUNING_SHARE = 100, 0.25
LEAST_SEEDS, RECALL_MARGIN, AUC_MARGIN = 4, 0.02, 0.03
VALIDATIONS = 4
SHORT, LONG = 10, 40
"""Steps of the two trainings whose difference is the time of a step."""
PHASES = {"diffusion": ("autoencoder", "diffusion"), "gan": ("gan",)}
Keys = dict[str, Any]


def main() -> None:
    """Train and measure what is missing, and print the table and the verdict."""
    arguments = parse()
    store, runner = Store(arguments.output), Runner(arguments)
    store.claim(runner.identity())
    costs = store.step_seconds() or runner.measure_steps()
    store.write_step_seconds(costs)
    if arguments.plan:
        print(plan(costs, runner.recipe_steps, arguments.seconds, len(arguments.seeds)))
        return
    runner.judge_real(store)
    for rate, factor in GRID:
        name, keys = f"tuning, rate {rate:g}, factor {factor:g}", gan_keys(rate, factor, runner.image_size)
        runner.complete(store, name, "gan", keys, TUNING_SEED, TUNING_SHARE * arguments.seconds, costs)
    rate, factor = chosen({pair: store.read(f"tuning, rate {pair[0]:g}, factor {pair[1]:g}") for pair in GRID})
    for seed, kind in product(arguments.seeds, PHASES):
        keys = gan_keys(rate, factor, runner.image_size) if kind == "gan" else {}
        runner.complete(store, f"{kind}, seed {seed}", kind, keys, seed, arguments.seconds, costs)
    rows = {kind: [store.read(f"{kind}, seed {seed}") for seed in arguments.seeds] for kind in PHASES}
    print(f"GAN: learning rate {rate:g}, penalties {factor:g} times the published ones")
    print(table(rows, store.read(REAL)))
    print(verdict(rows))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-dir", type=Path, required=True, help="folder of medfusion prepare")
    parser.add_argument("--bundle", type=Path, default=Path("bundles/medfusion_cxr"), help="folder of the bundle")
    parser.add_argument("--overlay", default="small.yaml", help="demo.yaml or small.yaml")
    parser.add_argument("--seconds", type=float, required=True, help="processor seconds of a training")
    parser.add_argument("--output", type=Path, required=True, help="folder of everything that is finished")
    parser.add_argument("--samples", type=int, default=512, help="images of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--plan", action="store_true", help="measure the time of a step, print the cost, and stop")
    return parser.parse_args()


class Runner:
    """Trains by the bundle's own commands, each in a process of its own, and measures.

    Args:
        arguments: of the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.configs = arguments, arguments.bundle.absolute() / "configs"
        read = [yaml.safe_load((self.configs / name).read_text()) for name in ("train.yaml", arguments.overlay)]
        keys = {**read[0], **read[1]}
        self.class_names, self.image_size = keys["class_names"], keys["image_size"]
        self.recipe_steps = {phase: keys[f"{phase}_steps"] for phase in PHASES["diffusion"]}
        self._judge: Judge | None = None

    def identity(self) -> dict[str, Any]:
        """Return what the study is of."""
        splits = {split: read_datalist(self.arguments.dataset_dir, split, self.class_names) for split in SPLITS}
        given = {name: getattr(self.arguments, name) for name in ("overlay", "seconds", "samples")}
        return {**given, "grid": GRID, **{split: fingerprint(items) for split, items in splits.items()}}

    def measure_steps(self) -> dict[str, float]:
        """Return the processor seconds of a step of each phase."""
        costs = {}
        for kind, phases in PHASES.items():
            for phase in phases:
                folder = self.arguments.output / "steps" / phase
                seconds = [self._time_of(kind, phase, folder / str(count), count) for count in (SHORT, LONG)]
                costs[phase] = (seconds[1] - seconds[0]) / (LONG - SHORT)
        return costs

    def _time_of(self, kind: str, phase: str, folder: Path, count: int) -> float:
        keys: Keys = {f"{phase}_steps": count, f"{phase}_val_interval": count, "resume": False}
        if phase == "diffusion":  # on the latents of the autoencoder that was timed before
            keys["model_dir"] = folder.parents[1] / "autoencoder" / str(LONG) / "models"
        return self._train(f"train_{phase}", kind, folder, 0, keys)

    def complete(
        self, store: Store, name: str, kind: str, keys: Keys, seed: int, seconds: float, costs: Mapping[str, float]
    ) -> None:
        """Train, sample and measure, unless it is done."""
        if store.read(name) is not None:
            return
        folder = self.arguments.output / "runs" / name
        steps = steps_within(costs, self.recipe_steps if kind == "diffusion" else {"gan": 1}, seconds)
        taken = self._train("training", kind, folder, seed, keys | interval_keys(steps))
        images, labels = sample(load(folder / "models", "cpu"), {}, self.arguments.samples, seed)
        store.write(name, self.judge(folder).judge(images, labels) | {"cpu_seconds": taken, "steps": steps})
        print(f"{name}: {store.read(name)}", flush=True)

    def judge_real(self, store: Store) -> None:
        """Measure the real test images, read as a model of the last timed training reads them."""
        if store.read(REAL) is None:
            store.write(REAL, self.judge(self.arguments.output / "steps" / "gan" / str(LONG)).judge_real())

    def judge(self, folder: Path) -> Judge:
        """Return what measures images, the same for all trainings."""
        if self._judge is None:
            items = {s: read_datalist(self.arguments.dataset_dir, s, self.class_names) for s in SPLITS}
            self._judge = Judge(load(folder / "models", "cpu"), items)
        return self._judge

    def _train(self, run_id: str, kind: str, folder: Path, seed: int, keys: Mapping[str, Any]) -> float:
        """Run or continue a training and return the processor seconds since this start."""
        names = ["train.yaml", self.arguments.overlay, *(["gan.yaml"] if kind == "gan" else [])]
        places = {"dataset_dir": self.arguments.dataset_dir.absolute(), "output_dir": folder / "runs"}
        given = {"model_dir": folder / "models", "seed": seed, "trial_step": False, **places, **keys}
        files = str([str(self.configs / name) for name in names])
        command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", files]
        for name, value in given.items():
            command += [f"--{name}", str(value.absolute() if isinstance(value, Path) else value)]
        folder.mkdir(parents=True, exist_ok=True)
        before = processor_seconds()
        with open(folder / "log.txt", "ab") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log, env={"PYTHONWARNINGS": "ignore", **os.environ})
        return processor_seconds() - before


SPLITS = ("training", "test")


def processor_seconds() -> float:
    """Return the processor seconds of all finished processes that this one started."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def gan_keys(rate: float, factor: float, image_size: Sequence[int]) -> Keys:
    """Return the keys of a pair of GRID."""
    from medfusion_monai.baselines import penalty_range

    return {"gan_lr": [rate, rate / 4], "gan_penalty": [factor * weight for weight in penalty_range(image_size)]}


def steps_within(costs: Mapping[str, float], ratio: Mapping[str, int], seconds: float) -> dict[str, int]:
    """Return the steps of the phases of a training, in the given ratio, that take about these seconds."""
    scale = seconds / sum(costs[phase] * steps for phase, steps in ratio.items())
    return {phase: max(1, int(scale * steps / VALIDATIONS)) * VALIDATIONS for phase, steps in ratio.items()}


def interval_keys(steps: Mapping[str, int]) -> Keys:
    """Return the keys of the steps of the phases, with as many validations in each."""
    return {
        f"{phase}_{key}": count // part
        for phase, count in steps.items()
        for key, part in (("steps", 1), ("val_interval", VALIDATIONS))
    }


def plan(costs: Mapping[str, float], recipe: Mapping[str, int], seconds: float, seeds: int) -> str:
    """Return what the study costs, in words."""
    total = (2 * seeds + TUNING_SHARE * len(GRID)) * seconds
    steps = steps_within(costs, recipe, seconds) | steps_within(costs, {"gan": 1}, seconds)
    each = ", ".join(f"{phase} {costs[phase]:.2f} s a step, {count:,} steps" for phase, count in steps.items())
    return (
        f"{each}; {2 * seeds} trainings and {len(GRID)} of a quarter: {total / 3600:.1f} processor hours, and sampling"
    )


def chosen(records: Mapping[tuple[float, float], Mapping[str, float] | None]) -> tuple[float, float]:
    """Return the pair of GRID with the lowest distance."""
    return min(records, key=lambda pair: (records[pair] or {})["fid"])


def verdict(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Apply the rule and return its outcome as a sentence."""
    ours, theirs = rows["diffusion"], rows["gan"]
    differences = [a["fid"] - b["fid"] for a, b in zip(ours, theirs, strict=True)]
    if len(differences) < LEAST_SEEDS:
        return f"no verdict: {len(differences)} seeds, {LEAST_SEEDS} are needed"
    apart = abs(mean(differences)) > max(differences) - min(differences)
    if not apart or len({each > 0 for each in differences}) > 1:
        return "no verdict: the distances differ by no more than those of seeds do"
    better, worse = ("diffusion", "gan") if mean(differences) < 0 else ("gan", "diffusion")
    lower = [
        name
        for name, margin in (("recall", RECALL_MARGIN), ("auc", AUC_MARGIN))
        if mean(row[name] for row in rows[worse]) - mean(row[name] for row in rows[better]) > margin
    ]
    return f"{better} has the lower distance" + (f", but the lower {' and '.join(lower)}" if lower else "")


def table(rows: Mapping[str, Sequence[Mapping[str, float]]], real: Mapping[str, float]) -> str:
    """Return all figures as Markdown, means over seeds and each seed's distance."""
    lines = [
        "| model | distance | of each seed | precision | recall | label AUC | processor seconds |",
        "|" + "---|" * 7,
    ]
    for name, own in rows.items():
        means = {key: mean(row[key] for row in own) for key in ("fid", "precision", "recall", "auc", "cpu_seconds")}
        each = ", ".join(f"{row['fid']:.1f}" for row in own)
        lines.append(
            f"| {name} | {means['fid']:.1f} | {each} | {means['precision']:.3f} | {means['recall']:.3f} | "
            f"{means['auc']:.3f} | {means['cpu_seconds']:.0f} |"
        )
    figures = " | ".join(f"{real[key]:.3f}" for key in ("precision", "recall", "auc"))
    return "\n".join([*lines, f"| {REAL} | {real['fid']:.1f} | | {figures} | |"])


if __name__ == "__main__":
    main()
