"""Measure how well features tell changed phantoms apart: EfficientNet-Lite0 and the network that the demo trains.

    python benchmarks/feature_networks.py [--modalities cxr fundus histo] [--json FILE]

For 300 phantoms per set: the Fréchet distance of changed sets to a reference set, divided by that of unchanged ones,
and the AUC of the label by logistic regression. About 8 minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from medfusion_monai.demo.phantoms.families import FAMILIES
from medfusion_monai.demo.phantoms.network import train_phantom_features
from medfusion_monai.evaluation.metrics.features import load_extractor
from medfusion_monai.evaluation.metrics.fid import frechet_distance

COUNT, SIZE, BATCH = 300, 64, 50


def main() -> None:
    """Print a row per modality and network."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--modalities", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    rows = []
    for modality in arguments.modalities:
        with tempfile.TemporaryDirectory() as folder:
            own = Path(folder) / "features.pt"
            train_phantom_features(modality, own)
            for features in (f"phantoms:{own}", "efficientnet-lite0"):
                rows.append(measure(modality, features))
                print(" | ".join(f"{name} {_short(value)}" for name, value in rows[-1].items()), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure(modality: str, features: str) -> dict[str, Any]:
    """Measure one network on phantoms of a modality."""
    start, extractor = time.perf_counter(), load_extractor(features)

    def extract(images: Tensor) -> Tensor:
        return torch.cat([extractor(batch) for batch in images.split(BATCH)])

    reference, same = extract(draw(modality, 1)), draw(modality, 2)
    floor = frechet_distance(reference, extract(same))
    generator = torch.Generator().manual_seed(0)
    sets = {
        "blur 1": gaussian_blur(same, 9, 1.0),
        "noise 0.05": (same + 0.05 * torch.randn(same.shape, generator=generator)).clamp(0, 1),
        "one class": draw(modality, 3, label=1),
        "three quarters one class": torch.cat([same[::2][: COUNT // 4], draw(modality, 4, label=1)[COUNT // 4 :]]),
    }
    row: dict[str, Any] = {"modality": modality, "features": extractor.name, "floor": floor}
    row |= {name: frechet_distance(reference, extract(images)) / floor for name, images in sets.items()}
    labels = np.arange(COUNT) % 2
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    classifier.fit(extract(draw(modality, 5)).numpy(), labels)
    row["AUC of the label"] = roc_auc_score(labels, classifier.decision_function(extract(draw(modality, 6)).numpy()))
    return row | {"seconds": time.perf_counter() - start}


def draw(modality: str, number: int, label: int | None = None) -> Tensor:
    """Draw a set of phantoms (N, C, H, W), another for each number; without a label, both classes equally often."""
    draws = [
        FAMILIES[modality].draw(number * 100_000 + index, index % 2 if label is None else label, SIZE)[0]
        for index in range(COUNT)
    ]
    return torch.from_numpy(np.stack(draws)).float()


def _short(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


if __name__ == "__main__":
    main()
