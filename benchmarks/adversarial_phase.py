"""Train phase one with and without discriminators and compare how much fine texture the reconstructions keep.

    python benchmarks/adversarial_phase.py --output DIR --seed 1 [--dataset-dir DATA --image-size 128 --steps 600]

Both arms are the demo's phase one on the same images and seed, with a lower learning rate in the second half of the
steps; there the second arm has discriminators as well. Texture is the power of the reconstructions above half of the
highest frequency, divided by that of the originals: 1 is as much as there was, a soft image is far below. ``--seed`` is
the seed of the phantoms, of their splits and of the training.

Rule, set before any run with another seed than 0, on which the learning rates were chosen: the arms are judged on the
test split, which chose nothing. Discriminators bring texture back in a run if the mean over patients of the texture
with minus without them has a 95% interval above 0.05, the median texture with them is nearer to 1, and the median SSIM
falls by at most 0.02. It is confirmed for a kind of images if that holds in every run on them, and every run is
reported. The correlation of the fine parts of reconstructions and originals is reported beside it and decides nothing:
invented texture raises the power and lowers the correlation.

The weights are those that a training keeps: the last ones with discriminators, those of the lowest validation loss
without. When seed 1 was run, a training kept the lowest loss with discriminators too.

Phantoms of 64 pixels take about 10 minutes of one free core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from torch import Tensor

from medfusion_monai.data.datalist import read_datalist
from medfusion_monai.demo.phantoms.families import prepare_phantoms
from medfusion_monai.evaluation.metrics.intervals import mean_figure
from medfusion_monai.losses.reconstruction import structural_similarity
from medfusion_monai.weights.state_dict import load_weights

ARMS = ("without", "with")
LEAST_GAIN, MOST_LOSS = 0.05, 0.02


def main() -> None:
    """Train both arms, as far as they are not there, and print a table."""
    arguments = _parse()
    output = arguments.output.absolute()
    dataset_dir = arguments.dataset_dir
    if dataset_dir is None:
        dataset_dir = output / "data"
        prepare_phantoms(
            dataset_dir, 400, arguments.image_size, arguments.seed, overwrite=True, modality=arguments.modality
        )
    patients = [item["patient"] for item in read_datalist(dataset_dir, "test")]
    result: dict[str, Any] = {"seed": arguments.seed, "steps": arguments.steps, "images": len(patients)}
    for arm in ARMS:
        _train(arm, arguments, dataset_dir, output / arm)
    result |= judge({arm: _measure(arguments, dataset_dir, output / arm) for arm in ARMS}, patients)
    show(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def show(result: dict[str, Any]) -> None:
    """Print the figures of both arms and the verdict."""
    for arm in ARMS:
        print(f"{arm:<8} " + ", ".join(f"{name} {value:.3f}" for name, value in result[arm].items()))
    value, low, high = (result["gain"][part] for part in ("value", "low", "high"))
    print(f"texture gained: {value:.3f} ({low:.3f} to {high:.3f}); back by the rule: {result['back']}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/medfusion_histo"))
    parser.add_argument("--modality", default="histo", help="of the phantoms, without --dataset-dir (histo)")
    parser.add_argument("--dataset-dir", type=Path)
    parser.add_argument("--image-size", type=int, default=64, help="height and width in pixels (64)")
    parser.add_argument("--seed", type=int, default=0, help="of phantoms, splits and training (0)")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--adversarial-lr", type=float, default=3.0e-5, help="of the autoencoder, in the second half")
    parser.add_argument("--discriminator-lr", type=float, default=1.0e-3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _configs(arguments: argparse.Namespace) -> list[str]:
    return [str(arguments.bundle.absolute() / "configs" / name) for name in ("train.yaml", "demo.yaml")]


def _train(arm: str, arguments: argparse.Namespace, dataset_dir: Path, output: Path) -> None:
    if (output / "models" / "autoencoder.pt").is_file():
        return
    settings: dict[str, Any] = {
        "dataset_dir": dataset_dir.absolute(),
        "model_dir": output / "models",
        "output_dir": output / "runs",
        "image_size": [arguments.image_size] * 2,
        "seed": arguments.seed,
        "autoencoder_steps": arguments.steps,
        "autoencoder_val_interval": arguments.steps // 4,
        "adversarial_start": arguments.steps // 2,
        "adversarial_lr": arguments.adversarial_lr,
        "discriminator_lr": arguments.discriminator_lr,
        "autoencoder_lr_decay": "constant",
        "autoencoder_training#adversarial#weight": float(arm == "with"),
    }
    configs = str(_configs(arguments))
    command = [sys.executable, "-m", "monai.bundle", "run", "train_autoencoder", "--config_file", configs]
    for name, value in settings.items():
        command += [f"--{name}", str(value)]
    subprocess.run(command, check=True)


def _measure(arguments: argparse.Namespace, dataset_dir: Path, output: Path) -> dict[str, Tensor]:
    parser = ConfigParser()
    parser.read_config(_configs(arguments))
    sides = [arguments.image_size] * 2
    parser.update({"dataset_dir": str(dataset_dir), "output_dir": str(output), "image_size": sides})
    network = parser.get_parsed_content("network_def").autoencoder.eval()
    load_weights(network, output / "models" / "autoencoder.pt", "train phase one")
    read = parser.get_parsed_content("train#preprocessing")
    images = torch.stack([read({"image": item["image"]})["image"] for item in read_datalist(dataset_dir, "test")])
    return compare(images, _reconstruct(network, images))


@torch.no_grad()
def _reconstruct(network: Any, images: Tensor) -> Tensor:
    parts = [network.decode(network.encode(part * 2 - 1).mean) for part in images.split(32)]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


def judge(measured: dict[str, dict[str, Tensor]], patients: list[str]) -> dict[str, Any]:
    """Return the medians of both arms, the ``gain`` of texture, and whether texture is ``back`` by the rule."""
    medians = {arm: {name: values.median().item() for name, values in of.items()} for arm, of in measured.items()}
    for row in medians.values():
        row["psnr"] = float(-10 * np.log10(row.pop("error")))
    gains = measured["with"]["texture"] - measured["without"]["texture"]
    numbers = np.unique(patients, return_inverse=True)[1]
    gain = mean_figure(torch.stack([gains[numbers == number].mean() for number in range(numbers.max() + 1)]))
    without, with_them = (medians[arm] for arm in ARMS)
    back = (
        gain.low is not None
        and gain.low > LEAST_GAIN
        and abs(with_them["texture"] - 1) < abs(without["texture"] - 1)
        and without["ssim"] - with_them["ssim"] <= MOST_LOSS
    )
    return {**medians, "gain": gain.as_dict(), "back": back}


def compare(images: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
    """Return figures (N,) of reconstructions (N, C, H, W) in [0, 1]: texture, fine correlation, SSIM, square error."""
    spectra = fine_spectrum(images), fine_spectrum(reconstructions)
    power = [spectrum.abs().square().sum(dim=1) for spectrum in spectra]
    return {
        "texture": power[1] / power[0],
        "fine correlation": (spectra[0].conj() * spectra[1]).real.sum(dim=1) / (power[0] * power[1]).sqrt(),
        "ssim": structural_similarity(reconstructions, images).double(),
        "error": (images - reconstructions).double().square().flatten(1).mean(dim=1),
    }


def fine_spectrum(images: Tensor) -> Tensor:
    """Return the spectrum (N, F) of images (N, C, H, W) at frequencies above half of the highest of an axis."""
    spectrum = torch.fft.fft2(images.double(), norm="ortho")
    rows, columns = (torch.fft.fftfreq(side) for side in images.shape[-2:])
    radius = (rows[:, None].square() + columns[None].square()).sqrt()
    return spectrum[..., radius > 0.25].flatten(1)


if __name__ == "__main__":
    main()
