"""Compare the images of the shipped sampler with those of the published one: Fréchet distance and the label's property.

Both sample the same labels from the same seeds with the same weights of a demo, in its precision. The reference are the
demo's training images. Intervals are 95%: of the Fréchet distance by resampling, of shares by Clopper and Pearson.

    python benchmarks/sampler_quality.py --demo runs/demo/cxr --json FILE
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medfusion_monai import load
from medfusion_monai.audit.statistics import share_figure
from medfusion_monai.data.datalist import read_datalist
from medfusion_monai.data.reading.images import read_image
from medfusion_monai.demo.phantoms.families import family_of_classes
from medfusion_monai.demo.phantoms.measurements import class_agreement
from medfusion_monai.evaluation.metrics.features import load_extractor
from medfusion_monai.evaluation.metrics.fidelity import measure_fidelity
from medfusion_monai.model import make_sampler
from medfusion_monai.runtime.dtype import choose_precision
from medfusion_monai.runtime.memory_format import make_ready
from medfusion_monai.runtime.seeds import derive_seed

PUBLISHED = {"sampler": "ddim", "num_inference_steps": 150, "spacing": "linspace", "eta": 1.0, "precision": "float32"}
UNIPC = {"sampler": "unipc", "num_inference_steps": 30, "spacing": "logsnr", "eta": 0.0}
SAMPLERS: Mapping[str, Mapping[str, Any]] = {"published": PUBLISHED, "shipped": {}, "unipc": UNIPC}
"""By name, what differs from what the weights say, and from the precision that the bundle chooses."""
FIGURES = ("fid", "precision", "recall")


def main() -> None:
    """Print a row for each sampler and guidance, and write the figures."""
    arguments = parse()
    class_names = load(arguments.demo, "cpu").class_names
    real = [item["image"] for item in read_datalist(arguments.demo / "data", "training", class_names)]
    extractor = load_extractor(f"phantoms:{arguments.demo / 'features.pt'}")
    reference = features(extractor, torch.from_numpy(np.stack([read_image(path) for path in real])))
    rows = []
    for guidance_scale in arguments.guidance:
        for name in arguments.samplers:
            settings = SAMPLERS[name] | ({} if guidance_scale is None else {"guidance_scale": guidance_scale})
            start = time.monotonic()
            images, labels, used = sample(arguments, settings)
            row = {"name": name, **used, "count": len(images), "seconds": round(time.monotonic() - start, 1)}
            row |= judge(images, labels, reference, extractor, class_names)
            rows.append(row)
            print(text_of(row), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, required=True, help="folder that medfusion demo wrote")
    parser.add_argument("--samples", type=int, default=512, help="the classes take turns")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS))
    parser.add_argument("--guidance", type=float, nargs="+", default=[None], help="the weights' own by default")
    parser.add_argument("--batch", type=int, default=32, help="images at a time")
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser.parse_args()


def sample(arguments: argparse.Namespace, settings: Mapping[str, Any]) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Sample images (N, C, H, W) in [0, 1]; return their labels (N,) and what they were sampled with too."""
    model, count, batch = load(arguments.demo, "cpu"), arguments.samples, arguments.batch
    choices = {name: value for name, value in settings.items() if name != "precision"}
    dtype = choose_precision(settings.get("precision", "auto"), model.device)
    inferer = make_sampler(model, **choices, dtype=dtype)
    make_ready(model.network, model.device, dtype)
    labels = torch.arange(count) % len(model.class_names)
    seeds = [derive_seed("sampler quality", number) for number in range(count)]
    parts = [
        inferer(labels[start : start + batch], model.network, seeds[start : start + batch])
        for start in range(0, count, batch)
    ]
    return torch.cat(parts), labels, inferer.settings() | {"dtype": str(dtype).removeprefix("torch.")}


@torch.no_grad()
def features(extractor: Any, images: Tensor) -> Tensor:
    """Return features (N, D) of images (N, C, H, W) in [0, 1]."""
    return torch.cat([extractor(part) for part in images.split(50)])


def judge(
    images: Tensor, labels: Tensor, reference: Tensor, extractor: Any, class_names: Sequence[str]
) -> dict[str, Any]:
    """Measure images (N, C, H, W): fidelity, and the share of each label whose measured property fits it."""
    found = measure_fidelity(reference, features(extractor, images), replicates=100)
    row: dict[str, Any] = {name: found[name].as_dict() for name in FIGURES}
    family = family_of_classes(class_names)
    for label, name in enumerate(class_names):
        own = images[labels == label]
        share = class_agreement(own.numpy(), [label] * len(own), family)[label]
        row[f"agreement, {name}"] = share_figure(round(share * len(own)), len(own)).as_dict()
    return row


def text_of(row: Mapping[str, Any]) -> str:
    """Write a row as a line."""
    head = f"{row['name']}: {row['sampler']} {row['num_inference_steps']} {row['spacing']}, eta {row['eta']:g}, "
    head += f"guidance {row['guidance_scale']:g}, {row['dtype']}, {row['count']} images in {row['seconds']} s"
    figures = [
        f"  {name} {figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
        for name, figure in row.items()
        if isinstance(figure, Mapping)
    ]
    return "\n".join([head, *figures])


if __name__ == "__main__":
    main()
