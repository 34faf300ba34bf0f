import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from medfusion_monai.demo.phantoms.draw_chest import draw_chest_phantom
from medfusion_monai.demo.phantoms.families import prepare_phantoms
from medfusion_monai.demo.phantoms.network import train_phantom_features
from medfusion_monai.evaluation.metrics.features import load_extractor

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


@pytest.mark.slow
def test_samplers_of_a_demo_differ_from_what_its_weights_say_by_what_is_named(tmp_path, monkeypatch, save_model):
    save_model(tmp_path / "models" / "model.pt", sampler={"num_inference_steps": 3, "eta": 1.0, "guidance_scale": 1.5})
    prepare_phantoms(tmp_path / "data", num_images=20, size=32)
    train_phantom_features("cxr", tmp_path / "features.pt", num_images=32, steps=4)
    figures = tmp_path / "figures.json"
    command = ["sampler_quality", "--demo", str(tmp_path), "--samples", "3", "--batch", "2", "--json", str(figures)]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(sampler_quality, "judge", lambda images, labels, *_: {"images": images.flatten(1).tolist()})
    sampler_quality.main()
    rows = {row["name"]: row for row in json.loads(figures.read_text())["rows"]}
    names = ("sampler", "num_inference_steps", "spacing", "eta", "guidance_scale")
    assert [rows["shipped"][name] for name in names] == ["ddim", 3, "logsnr", 1.0, 1.5]
    assert [rows["published"][name] for name in names] == ["ddim", 150, "linspace", 1.0, 1.5]
    assert [rows["unipc"][name] for name in names] == ["unipc", 30, "logsnr", 0.0, 1.5]
    assert rows["published"]["dtype"] == "float32"
    assert rows["shipped"]["dtype"] == rows["unipc"]["dtype"]
    assert len({json.dumps(row["images"]) for row in rows.values()}) == 3
