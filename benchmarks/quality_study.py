"""Compare recipes of phase two for equal compute: train each for the same time, sample, and measure the images.

Kill it at any time; the same command resumes. Everything that is finished is a file in --output. The compute of an
arm is counted in processor seconds of one thread, which on a core of its own are seconds of the clock: the median
step of each arm is measured once, all arms in turn, and each arm gets as many steps as fit.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from study.arms import ARMS, BASELINE, GUIDANCE_SCALES, Arm, choose_arms
from study.evaluation import CHECK, FAST, SHIPPED, Judge, clean_error
from study.material import Material, load_material, read_recipe, train_autoencoder
from study.store import Store
from study.summary import best_arm, markdown, summarise, verdict_table
from study.training import make_unet, measure_steps, train
from torch import Tensor

from medfusion_monai.data.datalist import read_datalist
from medfusion_monai.data.pixels import fingerprint
from medfusion_monai.demo.phantoms.families import family_of_classes, prepare_phantoms
from medfusion_monai.demo.phantoms.network import train_phantom_features
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.evaluation.metrics.features import load_extractor
from medfusion_monai.training.handlers.image_grid import grid_of_rows, save_picture
from medfusion_monai.weights.state_dict import save_atomically

BUNDLE = Path(__file__).parents[1] / "bundles" / "medfusion_cxr"
PHANTOMS = "phantoms"
SHOWN = 8
# On one core of an AMD EPYC, for the plan alone.
STEP_SECONDS, CALL_SECONDS, MEASURING_SECONDS = 0.15, 0.00125, 5.0


def main() -> None:
    """Do what is left of a study and print its tables."""
    arguments = parse()
    torch.set_num_threads(1)
    arms = choose_arms(arguments.arms)
    print(plan_text(arguments, arms), flush=True)
    if arguments.plan:
        return
    store = Store(arguments.output)
    overrides = {} if arguments.autoencoder_steps is None else {"autoencoder_steps": arguments.autoencoder_steps}
    dataset_dir = prepare_data(arguments.data, arguments.output)
    recipe = read_recipe(arguments.bundle, overrides)
    items = read_datalist(dataset_dir, "training", recipe["class_names"])
    settings = {"training_images": fingerprint(items), "seconds": arguments.seconds, "samples": arguments.samples}
    store.claim({**settings, "recipe": recipe})
    weights = train_autoencoder(arguments.bundle, dataset_dir, arguments.output, recipe["autoencoder_steps"])
    material = load_material(arguments.bundle, dataset_dir, weights, overrides)
    study = Study(store, material, make_judge(arguments, material), arguments.seconds)
    study.run(arms, arguments.seeds)
    report(store, arguments)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of everything that the study writes")
    parser.add_argument("--data", default=PHANTOMS, help="'phantoms', drawn here, or a folder of medfusion prepare")
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="processor seconds of one thread for each training"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="one training of each arm each")
    parser.add_argument("--arms", nargs="+", help=f"of {', '.join(arm.name for arm in ARMS)}; all by default")
    parser.add_argument("--samples", type=int, default=512, help="images of each sample")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="folder whose demo.yaml gives sizes and recipe")
    parser.add_argument("--autoencoder-steps", type=int, help="of phase one; the demo's by default")
    parser.add_argument("--also", type=Path, nargs="+", default=[], help="folders of other studies, for the verdict")
    parser.add_argument("--plan", action="store_true", help="say what it would take, and do nothing")
    parser.add_argument("--json", type=Path, help="file for all figures")
    return parser.parse_args()


def plan_text(arguments: argparse.Namespace, arms: list[Arm]) -> str:
    """Say what the study consists of and what it costs."""
    call = CALL_SECONDS * arguments.samples
    fast, check = 20 * call + MEASURING_SECONDS, 50 * call + MEASURING_SECONDS
    guidance = 2 * len(GUIDANCE_SCALES) * (40 * call + MEASURING_SECONDS)
    each = len(arms) * (arguments.seconds + 2.5 * fast) + fast + guidance
    minutes = (len(arguments.seeds) * each + len(arms) * check) / 60
    scales = ", ".join(f"{scale:g}" for scale in GUIDANCE_SCALES)
    return (
        f"{len(arms)} arms, {len(arguments.seeds)} seeds, {arguments.seconds:g} processor seconds each (about "
        f"{arguments.seconds / STEP_SECONDS:.0f} steps); about {minutes:.0f} min on one core, phase one apart:\n"
        + "\n".join(f"  {arm.name:10} {arm.words}" for arm in arms)
        + f"\n  all sampled by {FAST}, those that can by {SHIPPED}, of the first seed by {CHECK} too; the baseline "
        f"with raw weights as well; the baseline and the best other arm with guidance {scales}"
    )


def prepare_data(data: str, output: Path) -> Path:
    """Return the folder of the data set; draw the phantoms if they are asked for and not there."""
    if data != PHANTOMS:
        return Path(data)
    prepare_phantoms(output / "data")
    return output / "data"


def make_judge(arguments: argparse.Namespace, material: Material) -> Judge:
    """Make what measures images: features of a network that knows phantoms of the bundle's modality."""
    features = arguments.output / "features.pt"
    modality = family_of_classes(material.recipe["class_names"])
    if not features.is_file():
        train_phantom_features(modality, features)
    extractor = load_extractor(f"phantoms:{features}")
    return Judge(material, extractor, modality if arguments.data == PHANTOMS else None, arguments.samples)


class Study:
    """What is left to do of a study.

    Args:
        store: where results are.
        material: what all arms share.
        judge: measures images.
        seconds: processor seconds of each training.
    """

    def __init__(self, store: Store, material: Material, judge: Judge, seconds: float) -> None:
        self.store, self.material, self.judge, self.seconds = store, material, judge, seconds

    def run(self, arms: list[Arm], seeds: list[int]) -> None:
        """Train and measure every arm of every seed, then guidance of the baseline and of the best other arm.

        The other sampler comes last: it only checks.
        """
        seconds = measure_steps(arms, self.material, self.store.step_seconds())
        self.store.write_step_seconds(seconds)
        steps = {arm.name: max(10, int(self.seconds / seconds[arm.name])) for arm in arms}
        self.measure_baselines()
        for seed in seeds:
            for arm in arms:
                self.run_arm(arm, seed, steps[arm.name])
        for seed in seeds:
            for arm in [arm for arm in arms if NoiseSchedule(**arm.schedule).variance_preserving]:
                self.evaluate(arm, seed, "averaged", self.weights(arm, seed, steps[arm.name]), SHIPPED)
        best = best_arm(evaluations(self.store))
        for seed in seeds:
            for arm in [arm for arm in arms if arm.name in (BASELINE, best)]:
                weights = self.weights(arm, seed, steps[arm.name])
                for scale in GUIDANCE_SCALES:
                    self.evaluate(arm, seed, "averaged", weights, FAST, scale)
        for arm in arms:
            self.evaluate(arm, seeds[0], "averaged", self.weights(arm, seeds[0], steps[arm.name]), CHECK)

    def measure_baselines(self) -> None:
        """Measure real images and reconstructions, once."""
        if None in (self.store.read("real"), self.store.read("reconstructed")):
            for name, record in self.judge.baselines().items():
                self.store.write(name, {"kind": "baseline", "name": name, **record})

    def run_arm(self, arm: Arm, seed: int, steps: int) -> None:
        """Train and measure an arm; the baseline with raw weights too."""
        weights = self.weights(arm, seed, steps)
        for kind in weights:
            self.evaluate(arm, seed, kind, weights, FAST)

    def weights(self, arm: Arm, seed: int, steps: int) -> dict[str, dict[str, Tensor]]:
        """Return the weights of an arm, ``averaged`` and for the baseline ``raw``, trained if they are not there."""
        path = self.store.folder / "weights" / f"{arm.name}.seed{seed}.steps{steps}.pt"
        name = f"{arm.name}.seed{seed}.training"
        if path.is_file() and self.store.read(name) is not None:
            loaded: dict[str, dict[str, Tensor]] = torch.load(path, weights_only=True)
            return loaded
        trained = train(arm, self.material, seed, steps)
        kept = {"averaged": trained.averaged, **({"raw": trained.raw} if arm.name == BASELINE else {})}
        schedule = NoiseSchedule(**arm.schedule)
        errors = {kind: clean_error(self.network(arm, state), schedule, self.material) for kind, state in kept.items()}
        save_atomically(kept, path)
        self.store.write(name, {"kind": "training", **trained.record, "clean_error": errors})
        self.say(f"{arm.name} seed {seed}: {steps} steps in {trained.record['cpu_seconds']:.0f} processor seconds")
        return kept

    def network(self, arm: Arm, state: dict[str, Tensor]) -> Any:
        """Return the network of an arm with these weights."""
        network = make_unet(arm, self.material.recipe)
        network.load_state_dict(state)
        return network.eval().requires_grad_(False)

    def evaluate(
        self, arm: Arm, seed: int, kind: str, weights: dict[str, dict[str, Tensor]], sampler: str, scale: float = 1.0
    ) -> None:
        """Sample and measure, unless that is done; draw the first images of each class."""
        name = f"{arm.name}.seed{seed}.{kind}.{sampler}.guidance{scale:g}"
        if self.store.read(name) is not None:
            return
        schedule = NoiseSchedule(**arm.schedule)
        record, images, labels = self.judge.evaluate(self.network(arm, weights[kind]), schedule, sampler, seed, scale)
        rows = [images[labels == label][:SHOWN] for label in range(len(self.judge.class_names))]
        save_picture(grid_of_rows(rows), self.store.folder / "pictures" / f"{name}.png")
        self.store.write(name, {"kind": "evaluation", "arm": arm.name, "seed": seed, "weights": kind, **record})
        shown = ", ".join(f"{key} {record[key]:.3f}" for key in ("fid", "auc", "agreement") if record[key] is not None)
        self.say(f"{name}: {shown}")

    def say(self, text: str) -> None:
        """Print a line with the time."""
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def evaluations(store: Store) -> list[dict[str, Any]]:
    """Return the evaluations of a study so far."""
    return [record for record in store.records() if record["kind"] == "evaluation"]


def report(store: Store, arguments: argparse.Namespace) -> None:
    """Print the tables, the verdict, and write the JSON file."""
    records = store.records()
    rows = summarise(evaluations(store))
    trainings = [record for record in records if record["kind"] == "training"]
    baselines = {record["name"]: record for record in records if record["kind"] == "baseline"}
    print(f"\n{markdown(rows, trainings, baselines)}\n")
    studies = {folder.name: evaluations(Store(folder)) for folder in (arguments.output, *arguments.also)}
    print(verdict_table(studies))
    if arguments.json:
        machine = {"processor": platform.processor() or platform.machine(), "threads": 1, "torch": torch.__version__}
        result = {"machine": machine, "seconds": arguments.seconds, "step_seconds": store.step_seconds()}
        arguments.json.write_text(json.dumps({**result, "rows": rows, "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
