"""The evaluation config against the same figures computed by hand."""

import csv
import json
import re
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from medfusion_monai.data import read_datalist, read_image
from medfusion_monai.errors import first_cause
from medfusion_monai.metrics.features import load_extractor
from medfusion_monai.metrics.fidelity import measure_fidelity
from medfusion_monai.metrics.label_steering import label_steering
from medfusion_monai.metrics.phantoms.features import train_phantom_features
from medfusion_monai.metrics.similarity import ms_ssim, mse, psnr
from medfusion_monai.networks import Autoencoder

SIZE = [48, 48]  # the smallest that MS-SSIM takes


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "features.pt"
    train_phantom_features("cxr", path, num_images=32, steps=4)
    return f"phantoms:{path}"


@pytest.fixture
def evaluate(bundle, trained, dataset_dir, tmp_path):
    """Run ``evaluating`` with few settings and give what ``report.json`` holds."""

    def run(**overrides):
        places = {"dataset_dir": str(dataset_dir), "model_dir": str(trained / "models"), "output_dir": str(tmp_path)}
        quiet = {"samples_dir": None, "sweep_steps": [], "classifier_seeds": [], "image_size": SIZE}
        bundle("evaluating", "evaluate.yaml", **(places | quiet | overrides))
        return json.loads((tmp_path / "report.json").read_text())

    return run


@pytest.fixture(scope="module")
def samples_dir(bundle, lively, tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    common = {"model_dir": str(lively), "image_size": SIZE, "num_samples": 6}
    bundle("inference", "inference.yaml", output_dir=str(folder), **common)
    return folder


def images_of(dataset_dir, split):
    images = torch.from_numpy(np.stack([read_image(item["image"]) for item in read_datalist(dataset_dir, split)]))
    return F.interpolate(images, size=SIZE, mode="bilinear", antialias=True)


def test_reconstructions_of_a_split_are_measured(evaluate, trained, dataset_dir, tmp_path):
    results = evaluate(splits="validation")

    images = images_of(dataset_dir, "validation")
    network = Autoencoder(channels=[8, 8, 16, 16])
    network.load_state_dict(torch.load(trained / "models" / "autoencoder.pt", weights_only=True))
    with torch.no_grad():
        reconstructions = (network.eval().reconstruct(images * 2 - 1) * 0.5 + 0.5).clamp(0, 1)
    [row] = results["reconstructions"]
    assert (row["name"], row["split"], row["count"]) == ("Medfusion", "validation", len(images))
    for name, function in (("ms_ssim", ms_ssim), ("mse", mse), ("psnr", psnr)):
        expected = function(reconstructions, images)
        assert row[name]["mean"] == pytest.approx(expected.mean().item(), rel=1e-3)
        assert row[name]["std"] == pytest.approx(expected.std().item(), rel=1e-2)
    with open(tmp_path / "mse_raw.csv", newline="") as file:
        each = list(csv.reader(file))[1:]
    assert [line[0] for line in each] == [f"validation {number}" for number in range(len(images))]
    assert "fidelity" not in results


def test_generated_images_are_compared_overall_and_by_class(evaluate, samples_dir, dataset_dir, features):
    results = evaluate(samples_dir=str(samples_dir), features=features, replicates=5)

    extractor = load_extractor(features)
    real = extractor(images_of(dataset_dir, "test"))
    files = sorted(samples_dir.glob("*.png"))
    fake = extractor(torch.from_numpy(np.stack([read_image(file) for file in files])))
    expected = measure_fidelity(real, fake, replicates=0)
    rows = {row["class_name"]: row for row in results["fidelity"]}
    assert set(rows) == {None, "no_cardiomegaly", "cardiomegaly"}
    assert rows[None]["fid"]["value"] == pytest.approx(expected["fid"].value, rel=1e-3)
    assert rows[None]["fid"]["low"] < rows[None]["fid"]["high"]
    assert [rows[name]["count"] for name in rows] == [12, 6, 6]
    assert results["features"]["is_inception"] is False
    assert {picture["file"] for picture in results["pictures"]} == {
        "reconstructions.png",
        "samples.png",
        "neighbours_1.png",
    }


def test_sweep_measures_each_number_of_steps_and_goes_on(evaluate, features, tmp_path, monkeypatch):
    settings = {"sweep_steps": [2, 3], "sweep_samples": 3, "features": features, "replicates": 0}
    first = evaluate(**settings)["sweep"]["rows"]
    assert [(row["num_inference_steps"], row["count"]) for row in first] == [(2, 6), (3, 6)]
    assert first[0]["fid"]["value"] != first[1]["fid"]["value"]

    def refuse(*args, **kwargs):
        raise AssertionError("sampled again")

    monkeypatch.setattr("medfusion_monai.reports.sweep._sampled_features", refuse)
    assert evaluate(**settings)["sweep"]["rows"] == first


def test_label_steering_is_measured(evaluate, samples_dir, features, monkeypatch):
    monkeypatch.setattr("medfusion_monai.reports.comparison.label_steering", partial(label_steering, steps=2))
    rows = evaluate(samples_dir=str(samples_dir), features=features, replicates=0, classifier_seeds=[0])["steering"]
    assert {row["trained_on"] for row in rows["rows"]} >= {"real"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"features": "inception"}, "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"),
        ({"image_size": [56, 56]}, r"Medfusion: its images are 48x48 \(12\), height x width, and image_size is"),
        ({"sweep_steps": [0]}, "num_inference_steps must be a whole number"),
        ({"other_samples": {"GAN": "missing"}}, "GAN: 'missing' is not a folder"),
        ({"other_autoencoders": {"SD": "missing"}}, "missing"),
        ({"splits": ["test", "tset"]}, "split 'tset' has no such key"),
        ({"replicates": -1}, "replicates must be a whole number of at least 0"),
        ({"lpips": "alexx"}, "alexx"),
    ],
)
def test_what_does_not_fit_is_refused_before_measuring(
    overrides, words, evaluate, samples_dir, features, tmp_path, monkeypatch
):
    monkeypatch.setenv("MEDFUSION_WEIGHTS", str(tmp_path / "no_weights"))
    with pytest.raises(Exception) as caught:  # noqa: PT011  wrapped by MONAI's parser
        evaluate(**({"samples_dir": str(samples_dir), "features": features} | overrides))
    assert isinstance(first_cause(caught.value), ValueError)
    assert re.search(words, str(first_cause(caught.value)))
    assert not list(tmp_path.glob("*.*"))


def test_other_first_stages_stand_in_the_same_table(evaluate, tmp_path_factory):
    diffusers = pytest.importorskip("diffusers", reason="the extra 'diffusers' is not installed")
    folder = tmp_path_factory.mktemp("vae")
    block = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    diffusers.AutoencoderKL(block_out_channels=[8, 8], norm_num_groups=4, **block).save_pretrained(folder)
    rows = evaluate(splits="validation", other_autoencoders={"SD VAE": str(folder)})["reconstructions"]
    assert [row["name"] for row in rows] == ["Medfusion", "SD VAE"]
    assert rows[0]["mse"]["mean"] != rows[1]["mse"]["mean"]
    assert rows[0]["count"] == rows[1]["count"]
