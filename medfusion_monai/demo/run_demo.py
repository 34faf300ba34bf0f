"""The demonstration: phantoms, both phases of training, samples and their evaluation in one run."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser

from medfusion_monai.data.reading.images import read_image
from medfusion_monai.demo.phantoms.families import FAMILIES, family_of_classes, prepare_phantoms
from medfusion_monai.demo.phantoms.measurements import MEASUREMENTS, class_agreement
from medfusion_monai.demo.phantoms.network import train_phantom_features
from medfusion_monai.evaluation.image_set import open_image_set
from medfusion_monai.report.provenance import versions

NUM_SAMPLES = 64
TRAINING = ["train.yaml", "demo.yaml"]
SWEEP = {"sweep_steps": [5, 10, 25, 50], "sweep_samples": 32}


def run_demo(bundle: str | Path, output: str | Path, seed: int = 0, num_images: int = 2000) -> dict[str, Any]:
    """Train a bundle on phantoms with its own commands and evaluate it; five to nine minutes on two free cores.

    Args:
        bundle: folder of the bundle.
        output: folder for data, weights, samples, report and ``summary.json``.
        seed: seed of phantoms, training and samples.
        num_images: total number of phantoms.

    Returns:
        The summary: figures of reconstructions and samples, ``class_agreement``, seconds per phase, seed, versions.
    """
    output = Path(output).absolute()
    modality = family_of_classes(_class_names(bundle))
    seconds: dict[str, float] = {}
    with _phase(f"1/6 draw {FAMILIES[modality].title} phantoms", "data", seconds):
        prepare_phantoms(output / "data", num_images=num_images, seed=seed, overwrite=True, modality=modality)
    common = {"model_dir": output / "models", "seed": seed}
    train = {"dataset_dir": output / "data", "output_dir": output / "training", **common}
    with _phase("2/6 phase one: the autoencoder", "autoencoder", seconds):
        _run_bundle(bundle, "train_autoencoder", TRAINING, train)
    with _phase("3/6 phase two: the diffusion model", "diffusion", seconds):
        _run_bundle(bundle, "train_diffusion", TRAINING, {**train, "check_files": False})
    with _phase(f"4/6 sample {NUM_SAMPLES} images of each class", "sampling", seconds):
        sample = {"output_dir": output / "samples", "num_samples": NUM_SAMPLES, **common}
        _run_bundle(bundle, "inference", ["inference.yaml"], sample)
    with _phase("5/6 train features that know these phantoms", "features", seconds):
        train_phantom_features(modality, output / "features.pt", seed)
    with _phase("6/6 measure", "measuring", seconds):
        places = {"dataset_dir": output / "data", "samples_dir": output / "samples", "output_dir": output / "report"}
        evaluate = {**places, **common, "features": f"phantoms:{output / 'features.pt'}", **SWEEP}
        _run_bundle(bundle, "evaluating", ["evaluate.yaml"], evaluate)
        agreement = phantom_agreement(output / "samples", modality)
    summary = {
        **figures_of_report(output / "report" / "report.json"),
        "measured": MEASUREMENTS[modality].name,
        "class_agreement": agreement,
        "samples_per_class": NUM_SAMPLES,
        "seconds": seconds,
        "seed": seed,
        "versions": versions(),
    }
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print_summary(summary, output)
    return summary


def figures_of_report(path: str | Path) -> dict[str, Any]:
    """Return the main figures of a bundle's report: reconstructions of the test split, samples of all classes."""
    results = json.loads(Path(path).read_text(encoding="utf-8"))
    test = next(row for row in results["reconstructions"] if row["split"] == "test")
    samples = results["fidelity"][0]
    return {
        "held_out_images": test["count"],
        **{name: test[name]["mean"] for name in ("ms_ssim", "ssim", "mse")},
        "ms_ssim_std": test["ms_ssim"]["std"],
        **{name: samples[name]["value"] for name in ("fid", "precision", "recall")},
        "features": results["features"]["name"],
    }


def phantom_agreement(samples_dir: Path, modality: str = "cxr") -> dict[str, float]:
    """Return the share of samples per class whose measured property agrees with the class."""
    samples = open_image_set("samples", samples_dir)
    agreement = {}
    for label, name in enumerate(FAMILIES[modality].class_names):
        images = np.stack([read_image(samples.paths[index]) for index in samples.indices(name)])
        agreement[name] = class_agreement(images, [label] * len(images), modality)[label]
    return agreement


def print_summary(summary: dict[str, Any], output: Path) -> None:
    """Print a short table and the path of the report."""
    rows = [
        (f"MS-SSIM of {summary['held_out_images']} held-out images", f"{summary['ms_ssim']:.4f}"),
        ("SSIM of the same", f"{summary['ssim']:.4f}"),
        (f"Fréchet distance, {summary['features']} features", f"{summary['fid']:.2f}"),
        ("precision", f"{summary['precision']:.2f}"),
        ("recall", f"{summary['recall']:.2f}"),
    ]
    rows += [
        (f"{summary['measured']} fits '{name}'", f"{share:.1%}") for name, share in summary["class_agreement"].items()
    ]
    rows += [(f"seconds: {name}", f"{value:.0f}") for name, value in summary["seconds"].items()]
    width = max(len(name) for name, _ in rows)
    print("\n" + "\n".join(f"{name:<{width}}  {value:>8}" for name, value in rows))
    print(f"\nreport: {output / 'report' / 'report.html'}\nsummary: {output / 'summary.json'}")


def _class_names(bundle: str | Path) -> list[str]:
    parser = ConfigParser()
    parser.read_config(str(Path(bundle) / "configs" / "train.yaml"))
    return parser.get_parsed_content("class_names")


def _run_bundle(bundle: str | Path, run_id: str, configs: Sequence[str], overrides: dict[str, Any]) -> None:
    """Run configs of a bundle as a user would, in a separate process."""
    files = [str(Path(bundle).absolute() / "configs" / name) for name in configs]
    command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", str(files)]
    for name, value in overrides.items():
        command += [f"--{name}", str(value)]
    print(shlex.join(["python", *command[1:]]), flush=True)
    environment = {"PYTHONWARNINGS": "ignore", **os.environ}
    if subprocess.run(command, check=False, env=environment).returncode:
        raise ValueError(f"{run_id} failed: see its error above")


@contextmanager
def _phase(title: str, name: str, seconds: dict[str, float]) -> Iterator[None]:
    print(f"\n=== {title} ===", flush=True)
    start = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - start, 1)
