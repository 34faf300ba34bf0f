"""Train phase one with and without discriminators and compare how much fine texture the reconstructions keep.

    python benchmarks/adversarial_phase.py --output DIR [--bundle bundles/medfusion_histo] [--dataset-dir DATA]

Both arms are the demo's phase one on the same images and seed, with a lower learning rate in the second half of the
steps; there the second arm has discriminators as well. Texture is the power of the reconstructions above half of the
highest frequency, divided by that of the originals: 1 is as much as there was, a soft image is far below. About 5
minutes of two free cores.
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
from medfusion_monai.losses.reconstruction import structural_similarity
from medfusion_monai.weights.state_dict import load_weights

ARMS = ("without", "with")


def main() -> None:
    """Train both arms, as far as they are not there, and print a table."""
    arguments = _parse()
    output = arguments.output.absolute()
    dataset_dir = arguments.dataset_dir
    if dataset_dir is None:
        dataset_dir = output / "data"
        prepare_phantoms(dataset_dir, num_images=400, seed=0, overwrite=True, modality=arguments.modality)
    rows = {arm: _measure(arm, arguments, dataset_dir, output / arm) for arm in ARMS}
    for arm, row in rows.items():
        print(f"{arm:<8} texture {row['texture']:.3f}  SSIM {row['ssim']:.4f}  PSNR {row['psnr']:.2f} dB")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/medfusion_histo"))
    parser.add_argument("--modality", default="histo", help="of the phantoms, without --dataset-dir (histo)")
    parser.add_argument("--dataset-dir", type=Path)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--adversarial-lr", type=float, default=3.0e-5, help="of the autoencoder, in the second half")
    parser.add_argument("--discriminator-lr", type=float, default=1.0e-3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _measure(arm: str, arguments: argparse.Namespace, dataset_dir: Path, output: Path) -> dict[str, float]:
    configs = [str(arguments.bundle.absolute() / "configs" / name) for name in ("train.yaml", "demo.yaml")]
    settings: dict[str, Any] = {
        "dataset_dir": dataset_dir.absolute(),
        "model_dir": output / "models",
        "output_dir": output / "runs",
        "autoencoder_steps": arguments.steps,
        "autoencoder_val_interval": arguments.steps // 4,
        "adversarial_start": arguments.steps // 2,
        "adversarial_lr": arguments.adversarial_lr,
        "discriminator_lr": arguments.discriminator_lr,
        "autoencoder_lr_decay": "constant",
        "autoencoder_training#adversarial#weight": float(arm == "with"),
    }
    if not (output / "models" / "autoencoder.pt").is_file():
        command = [sys.executable, "-m", "monai.bundle", "run", "train_autoencoder", "--config_file", str(configs)]
        for name, value in settings.items():
            command += [f"--{name}", str(value)]
        subprocess.run(command, check=True)
    parser = ConfigParser()
    parser.read_config(configs)
    parser.update({"dataset_dir": str(dataset_dir), "output_dir": str(output)})
    network = parser.get_parsed_content("network_def").autoencoder
    load_weights(network, output / "models" / "autoencoder.pt", "train phase one").eval()
    read = parser.get_parsed_content("train#preprocessing")
    images = torch.stack([read({"image": item["image"]})["image"] for item in read_datalist(dataset_dir, "test")])
    return compare(images, _reconstruct(network, images))


@torch.no_grad()
def _reconstruct(network: Any, images: Tensor) -> Tensor:
    parts = [network.decode(network.encode(part * 2 - 1).mean) for part in images.split(32)]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


def compare(images: Tensor, reconstructions: Tensor) -> dict[str, float]:
    """Return the texture, SSIM and PSNR of reconstructions (N, C, H, W) in [0, 1]: medians over the images."""
    ratio = fine_power(reconstructions) / fine_power(images)
    error = (images - reconstructions).square().flatten(1).mean(dim=1)
    return {
        "texture": ratio.median().item(),
        "ssim": structural_similarity(reconstructions, images).median().item(),
        "psnr": float(-10 * np.log10(error.median().item())),
    }


def fine_power(images: Tensor) -> Tensor:
    """Return the power (N,) of images (N, C, H, W) at frequencies above half of the highest of an axis."""
    spectrum = torch.fft.fft2(images.double(), norm="ortho").abs().square().mean(dim=1)
    rows, columns = (torch.fft.fftfreq(side) for side in images.shape[-2:])
    radius = (rows[:, None].square() + columns[None].square()).sqrt()
    return spectrum[:, radius > 0.25].sum(dim=1)


if __name__ == "__main__":
    main()
