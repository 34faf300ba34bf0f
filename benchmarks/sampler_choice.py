"""Choose the default sampler by real images: distance, recall and labels.

    python benchmarks/sampler_choice.py --model-file models/starter --dataset-dir DATA --output DIR

Every arm samples the same labels (the classes take turns) from the same image seeds with the weights of one model. The
Fréchet distance, precision and recall are those of features of EfficientNet-Lite0 against all training images; label
AUC is that of a classifier of real training images on the samples, for two classes. The last row, real test images, is
what a perfect sampler would reach with as many images as there are.

The rule, set before the first result: the arms in CHOICE, which call the UNet 30 times or less, compete for the
default. An arm replaces the first one, the default so far, if its distance is lower for every seed, its mean recall is
not lower by more than 0.02, and its mean label AUC not lower by more than 0.03; of several, the one with the lowest
mean distance. All other arms are shown for comparison; those with a guide need its weights, --guide.

Kill it at any time; the same command continues with the arms that are missing in --output.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from study.store import Store
from torch import Tensor

from medfusion_monai.data.datalist import read_datalist
from medfusion_monai.data.pixels import fingerprint
from medfusion_monai.evaluation.metrics.classifier import LabelledImages, scores, train_classifier
from medfusion_monai.evaluation.metrics.features import load_extractor
from medfusion_monai.evaluation.metrics.fidelity import measure_fidelity
from medfusion_monai.evaluation.metrics.label_steering import areas_under_curve
from medfusion_monai.model import Model, load, make_preprocessing, make_sampler
from medfusion_monai.runtime.dtype import choose_precision
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.runtime.memory_format import make_ready
from medfusion_monai.runtime.seeds import derive_seed
from medfusion_monai.weights.places import find_weights

BATCH = 32


def arm(sampler: str, steps: int, eta: float = 0.0, **guidance: Any) -> dict[str, Any]:
    """Return settings of a sampler, even in log-SNR; by default without guidance, whatever the weights say."""
    plain = {"sampler": sampler, "num_inference_steps": steps, "spacing": "logsnr", "eta": eta, "guidance_scale": 1.0}
    return plain | guidance


BY_LABEL = {"guidance_scale": 1.5, "guidance_model": "none"}
GUIDED = {f"UniPC 30, guide {scale:g}": arm("unipc", 30, guidance_scale=scale) for scale in (1.35, 1.5, 1.7, 2.0)}
"""Arms that --guide is needed for."""
ARMS: Mapping[str, Mapping[str, Any]] = {
    "DDIM 30, noise": arm("ddim", 30, 1.0),
    "UniPC 30": arm("unipc", 30),
    "UniPC 20": arm("unipc", 20),
    "DDIM 30, no noise": arm("ddim", 30, 0.0),
    "DPM-Solver++ 30": arm("dpm_solver", 30),
    "UniPC 30, guidance 1.5": arm("unipc", 30, **BY_LABEL),
    "UniPC 30, guidance 1.5 for sigma 0.3 to 3": arm("unipc", 30, **BY_LABEL, guidance_interval=(0.3, 3.0)),
    "DDIM 100, noise": arm("ddim", 100, 1.0),
    **GUIDED,
}
CHOICE = ("DDIM 30, noise", "UniPC 30", "UniPC 20", "DDIM 30, no noise", "DPM-Solver++ 30")
RECALL_MARGIN, AUC_MARGIN = 0.02, 0.03
REAL = "real test images"


def main() -> None:
    """Sample and measure what is missing, and print the table and the choice."""
    arguments = parse()
    model, judge = load(arguments.model_file, "cpu"), None
    store = Store(arguments.output)
    items = {split: read_datalist(arguments.dataset_dir, split, model.class_names) for split in ("training", "test")}
    store.claim(
        {
            "weights": file_sha256(model.path),
            "training_images": fingerprint(items["training"]),
            "test_images": fingerprint(items["test"]),
            "samples": arguments.samples,
            **({} if arguments.guide is None else {"guide": file_sha256(find_weights(arguments.guide))}),
        }
    )
    for name in arguments.arms:
        guide = {"guidance_model": arguments.guide} if name in GUIDED else {}
        for seed in arguments.seeds:
            if store.read(f"{name}, seed {seed}") is None:
                judge = judge or Judge(model, items)
                start = time.process_time()
                images, labels = sample(model, {**ARMS[name], **guide}, arguments.samples, seed)
                seconds = time.process_time() - start
                store.write(f"{name}, seed {seed}", judge.judge(images, labels) | {"cpu_seconds": seconds})
                print(f"{name}, seed {seed}: {store.read(f'{name}, seed {seed}')}", flush=True)
    if store.read(REAL) is None:
        store.write(REAL, (judge or Judge(model, items)).judge_real())
    rows = {name: [store.read(f"{name}, seed {seed}") for seed in arguments.seeds] for name in arguments.arms}
    print(table(rows, store.read(REAL)))
    print(choose(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, REAL: store.read(REAL)}, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-file", type=Path, required=True, help="weights, or a folder that contains them")
    parser.add_argument("--dataset-dir", type=Path, required=True, help="folder of medfusion prepare")
    parser.add_argument("--output", type=Path, required=True, help="folder of everything that is finished")
    parser.add_argument("--samples", type=int, default=512, help="images of each arm and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--guide", type=Path, help="weights that guide the arms with a guide")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), metavar="ARM")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    arguments.arms = arguments.arms or [name for name in ARMS if arguments.guide or name not in GUIDED]
    guided = sorted(GUIDED.keys() & set(arguments.arms))
    if guided and arguments.guide is None:
        parser.error(f"{', '.join(guided)} need the weights of a --guide")
    return arguments


class Judge:
    """Measures samples against real images: features of the training images, and a classifier of them.

    Args:
        model: whose images are measured; defines how real ones are read.
        items: of the splits ``training`` and ``test``.
        features: the extractor, as ``load_extractor`` takes it.
    """

    def __init__(
        self, model: Model, items: Mapping[str, Sequence[Mapping[str, Any]]], features: str = "efficientnet-lite0"
    ) -> None:
        read: Any = make_preprocessing(model)
        self.images = {
            split: torch.stack([torch.as_tensor(read({"image": item["image"]})["image"]) for item in own])
            for split, own in items.items()
        }
        self.labels = {split: torch.tensor([item["label"] for item in own]) for split, own in items.items()}
        self.extractor: Any = load_extractor(features)
        self.reference = self.features(self.images["training"])
        real = LabelledImages(self.images["training"], self.labels["training"])
        self.classifiers = [train_classifier(real, len(model.class_names), seed) for seed in range(3)]

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return features (N, D) of images (N, C, H, W) in [0, 1]."""
        return torch.cat([self.extractor(part) for part in images.split(BATCH)])

    def judge(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Return distance, precision, recall and, for two classes, the AUC of the label."""
        return self.figures(self.features(images), self.probabilities(images), labels)

    def probabilities(self, images: Tensor) -> list[Tensor]:
        """Return what each classifier says of images (N, C, H, W): (N, classes) each."""
        return [scores(classifier, images) for classifier in self.classifiers]

    def figures(self, features: Tensor, probabilities: Sequence[Tensor], labels: Tensor) -> dict[str, float]:
        """Return what ``judge`` does, of images by their features and probabilities."""
        found = measure_fidelity(self.reference, features, replicates=0)
        weights = torch.ones(1, len(labels), dtype=torch.float64)
        areas = [float(areas_under_curve(each, labels, weights)) for each in probabilities]
        return {name: float(found[name].value) for name in ("fid", "precision", "recall")} | {"auc": mean(areas)}

    def judge_real(self) -> dict[str, float]:
        """Return the same of the real test images."""
        return self.judge(self.images["test"], self.labels["test"])


def sample(model: Model, settings: Mapping[str, Any], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sample images (count, C, H, W) in [0, 1], the classes in turn; return their labels (count,) too."""
    dtype = choose_precision("auto", model.device)
    inferer = make_sampler(model, **settings, dtype=dtype)
    make_ready(model.network, model.device, dtype)
    labels = torch.arange(count) % len(model.class_names)
    seeds = [derive_seed("sampler choice", seed, number) for number in range(count)]
    parts = [slice(start, start + BATCH) for start in range(0, count, BATCH)]
    return torch.cat([inferer(labels[at], model.network, seeds[at]) for at in parts]), labels


def table(rows: Mapping[str, Sequence[Mapping[str, float]]], real: Mapping[str, float]) -> str:
    """Return all figures as Markdown, the mean over seeds and each seed's distance."""
    lines = ["| sampler | distance | of each seed | precision | recall | label AUC | CPU seconds |", "|" + "---|" * 7]
    for name, own in rows.items():
        means = {key: mean(row[key] for row in own) for key in own[0]}
        each = ", ".join(f"{row['fid']:.1f}" for row in own)
        lines.append(
            f"| {name} | {means['fid']:.1f} | {each} | {means['precision']:.3f} | {means['recall']:.3f} | "
            f"{means['auc']:.3f} | {means['cpu_seconds']:.0f} |"
        )
    lines.append(
        f"| {REAL} | {real['fid']:.1f} | | {real['precision']:.3f} | {real['recall']:.3f} | {real['auc']:.3f} | |"
    )
    return "\n".join(lines)


def choose(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Apply the rule and return its outcome as a sentence."""
    first, *others = CHOICE
    if first not in rows:
        return f"no choice: {first}, the default so far, was not measured"
    before = rows[first]

    def loss(name: str, key: str) -> float:
        return mean(row[key] for row in before) - mean(row[key] for row in rows[name])

    better = [
        name
        for name in others
        if name in rows
        and all(new["fid"] < old["fid"] for new, old in zip(rows[name], before, strict=True))
        and loss(name, "recall") <= RECALL_MARGIN
        and loss(name, "auc") <= AUC_MARGIN
    ]
    if not better:
        return f"{first} stays the default: no other arm is better by the rule"
    best = min(better, key=lambda name: mean(row["fid"] for row in rows[name]))
    return f"{best} becomes the default: better than {first} by the rule"


if __name__ == "__main__":
    main()
