"""Measure edits on held-out images: inversion, classes by denoising error, counterfactuals, seams of inpainting.

The class of a counterfactual is judged by the model itself, which can see what it changed and need not be right. Shares
have intervals of 95% (Clopper and Pearson). Images of a class are spread evenly over the split.

    python benchmarks/edits.py --model bundles/medfusion_cxr --data DATA --per-class 16 --json FILE --picture FILE.png
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from edit_proofs import rows_of, save_picture, seam_figures
from torch import Tensor

from medfusion_monai import Model, load
from medfusion_monai.audit.statistics import share_figure
from medfusion_monai.data.datalist import read_datalist
from medfusion_monai.data.reading.brightness import spread_evenly
from medfusion_monai.diffusion.guidance import guided_denoiser
from medfusion_monai.editing import classify, counterfactual, invert
from medfusion_monai.editing.inversion import from_inversion
from medfusion_monai.model import make_preprocessing


def main() -> None:
    """Print the figures, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="weights, or a bundle with weights, of two classes")
    parser.add_argument("--data", type=Path, required=True, help="prepared data set")
    parser.add_argument("--split", default="test")
    parser.add_argument("--per-class", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="PNG of random images: as read, as the other class, inpainted")
    arguments = parser.parse_args()
    model = load(arguments.model, arguments.device)
    images, labels = read(model, arguments.data, arguments.split, arguments.per_class)
    shown, classes = class_figures(model, images, labels)
    inpainted, seams = seam_figures(model, images, labels, len(images))
    figures = {"images": len(images), **inversion_figures(model, images, labels), **classes, "inpainting": seams}
    for name, value in figures.items():
        print(f"{name}: {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"torch": torch.__version__, **figures}, indent=1) + "\n")
    if arguments.picture:
        save_picture(
            [row for each in (images, shown, inpainted) for row in rows_of(each, len(images))], arguments.picture
        )


def read(model: Model, data: Path, split: str, per_class: int) -> tuple[Tensor, Tensor]:
    """Return images (B, C, H, W) in [0, 1] and labels (B,), at most ``per_class`` of each class."""
    items = read_datalist(data, split, model.class_names)
    chosen = [
        (path, label)
        for label in range(len(model.class_names))
        for path in spread_evenly([item["image"] for item in items if item["label"] == label], per_class)
    ]
    preprocessing = make_preprocessing(model)
    return (
        torch.stack([preprocessing({"image": path})["image"] for path, _ in chosen]),
        torch.tensor([label for _, label in chosen]),
    )


@torch.no_grad()
def inversion_figures(model: Model, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return how exactly latents come back, and how close the inverted noise is to a standard normal one."""
    calls: list[None] = []
    hook = model.network.unet.register_forward_hook(lambda *_: calls.append(None))
    inversion = invert(model, images, labels, batch_size=len(images))
    hook.remove()
    steps = len(inversion.timesteps) - 1
    denoiser = guided_denoiser(model.network.unet, inversion.class_labels)
    back = from_inversion(denoiser, inversion, model.schedule)
    return {
        "largest error of a latent": float((back - model.encode(images)).abs().max()),
        "calls per step": round(len(calls) / steps, 2),
        "standard deviation of the noise": round(float(inversion.noisy_latents.std()), 3),
    }


def class_figures(model: Model, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Return counterfactuals, and the shares of images and of counterfactuals whose class is found."""
    start = time.monotonic()
    before = classify(model, images).labels.cpu() == labels
    classified = time.monotonic()
    shown = counterfactual(model, images, 1 - labels, labels)
    edited = time.monotonic()
    after = classify(model, shown).labels.cpu() == 1 - labels
    return shown, {
        "class found": share(before),
        "counterfactual taken for the other class": share(after),
        "mean change of a pixel": round(float((shown - images.cpu()).abs().mean()), 4),
        "seconds per image, classify": round((classified - start) / len(images), 2),
        "seconds per image, counterfactual": round((edited - classified) / len(images), 2),
    }


def share(right: Tensor) -> str:
    """Return a share with its interval in words."""
    figure = share_figure(int(right.sum()), len(right))
    return f"{int(right.sum())} of {len(right)} ({figure.low:.2f} to {figure.high:.2f})"


if __name__ == "__main__":
    main()
