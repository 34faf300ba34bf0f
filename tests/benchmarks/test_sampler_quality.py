import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from medfusion_monai.data import draw_chest_phantom
from medfusion_monai.metrics.features import load_extractor
from medfusion_monai.metrics.phantoms.features import train_phantom_features

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
sampler_quality = import_module("sampler_quality")
CLASSES = ["no_cardiomegaly", "cardiomegaly"]


def test_images_are_judged_by_their_distance_and_by_what_their_label_says(tmp_path):
    train_phantom_features("cxr", tmp_path / "features.pt", num_images=32, steps=4)
    extractor = load_extractor(f"phantoms:{tmp_path / 'features.pt'}")
    labels = torch.arange(40) % 2
    images = torch.stack([torch.from_numpy(draw_chest_phantom(k, int(labels[k]), 64)[0]).float() for k in range(40)])
    reference = sampler_quality.features(extractor, images)
    right = sampler_quality.judge(images, labels, reference, extractor, CLASSES)
    assert right["fid"]["value"] == pytest.approx(0.0, abs=1e-3)
    assert [right[f"agreement, {name}"]["value"] for name in CLASSES] == [1.0, 1.0]
    wrong = sampler_quality.judge(0.5 * images, 1 - labels, reference, extractor, CLASSES)
    assert wrong["fid"]["value"] > right["fid"]["value"] + 5e-4
    assert [wrong[f"agreement, {name}"]["value"] for name in CLASSES] == [0.0, 0.0]
    used = {"sampler": "ddim", "num_inference_steps": 30, "spacing": "logsnr", "eta": 1.0, "guidance_scale": 1.5}
    text = sampler_quality.text_of({"name": "x", **used, "dtype": "float32", "count": 40, "seconds": 1.0, **right})
    assert "agreement, cardiomegaly 1.000 (0.832 to 1.000)" in text
