"""Measure what keeps generated images from real ones: the autoencoder, or the UNet.

    python benchmarks/held_back.py --model-file models/starter --dataset-dir DATA [--samples SAMPLES] [--json FILE]

As many training images, reconstructions and samples as there are test images are compared by features of
EfficientNet-Lite0. Reconstructions of training images against test images show the autoencoder's part, samples against
reconstructions of test images the UNet's. Below, the power of reconstructions and samples relative to that of the test
images, by frequency in cycles per pixel. About 3 minutes of one core for 728 images of 128 pixels. To choose between
autoencoders leave out --samples and use --split validation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medfusion_monai.data.datalist import read_datalist
from medfusion_monai.evaluation.image_set import open_image_set
from medfusion_monai.evaluation.metrics.features import load_extractor
from medfusion_monai.evaluation.metrics.fidelity import measure_fidelity
from medfusion_monai.model import Model, load, make_preprocessing

BATCH = 32
BANDS = (0.0, 0.05, 0.125, 0.25, 0.5)
PAIRS = (
    ("training images", "held-out images"),
    ("reconstructed training images", "held-out images"),
    ("reconstructed training images", "reconstructed held-out images"),
    ("samples", "reconstructed held-out images"),
    ("samples", "held-out images"),
)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model-file", type=Path, required=True)
    parser.add_argument("--dataset-dir", type=Path, required=True)
    parser.add_argument("--samples", type=Path, help="written by inference, at least as many as held-out images")
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="the held-out images (test)")
    parser.add_argument("--most", type=int, help="the most held-out images to use (all)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    held_out = [item["image"] for item in read_datalist(arguments.dataset_dir, arguments.split)][: arguments.most]
    images = read_sets(load(arguments.model_file, "cpu"), arguments.dataset_dir, held_out, arguments.samples)
    extractor = load_extractor("efficientnet-lite0")
    features = {name: torch.cat([extractor(batch) for batch in each.split(BATCH)]) for name, each in images.items()}
    rows = []
    for measured, reference in (pair for pair in PAIRS if images.keys() >= set(pair)):
        figures = measure_fidelity(features[reference], features[measured], replicates=0)
        rows.append({"set": measured, "reference": reference, **{key: value.value for key, value in figures.items()}})
        values = " | ".join(f"{figures[name].value:.3f}" for name in ("fid", "precision", "recall"))
        print(f"{measured} against {reference} | {values}")
    powers = {name: band_powers(images[name], images["held-out images"]) for name in list(images)[2:]}
    for name, shares in powers.items():
        print(f"{name} | " + ", ".join(f"{share:.3f}" for share in shares))
    if arguments.json:
        arguments.json.write_text(json.dumps({"pairs": rows, "bands": BANDS, "powers": powers}, indent=1) + "\n")


def read_sets(
    model: Model, dataset_dir: Path, held_out: Sequence[str], samples: Path | None = None
) -> dict[str, Tensor]:
    """Return equally many images (N, C, H, W) in [0, 1] of each set, training images spread over their split."""
    read: Any = make_preprocessing(model)

    def opened(paths: Sequence[str]) -> Tensor:
        return torch.stack([torch.as_tensor(read({"image": path})["image"]) for path in paths])

    count = len(held_out)
    training = [item["image"] for item in read_datalist(dataset_dir, "training")]
    generated = None if samples is None else open_image_set("samples", samples).paths
    if min(len(training), count if generated is None else len(generated)) < count:
        raise ValueError(
            f"{count} held-out images need as many training images and samples: sample more, or set --most"
        )
    spread = [training[place * len(training) // count] for place in range(count)]
    sets = {"training images": opened(spread), "held-out images": opened(held_out)}
    for name in list(sets):
        sets[f"reconstructed {name}"] = torch.cat([model.reconstruct(batch) for batch in sets[name].split(BATCH)])
    return sets if generated is None else sets | {"samples": opened(generated[:count])}


def band_powers(images: Tensor, reference: Tensor) -> list[float]:
    """Return the power of images in each of ``BANDS``, divided by that of the reference."""
    rows, columns = (torch.fft.fftfreq(side) for side in images.shape[-2:])
    radius = (rows[:, None].square() + columns[None].square()).sqrt()
    spectra = [torch.fft.fft2(each).abs().square().mean(dim=(0, 1)) for each in (images, reference)]
    shares = []
    for low, high in pairwise(BANDS):
        band = (radius >= low) & (radius < high) & (radius > 0)
        shares.append(float(spectra[0][band].sum() / spectra[1][band].sum()))
    return shares


if __name__ == "__main__":
    main()
