"""The evaluation config against the same figures computed by hand."""

import csv

import numpy as np
import pytest
import torch

from medfusion_monai.data import read_datalist, read_image
from medfusion_monai.metrics.similarity import ms_ssim, mse
from medfusion_monai.networks import Autoencoder

SIZE = [48, 48]  # the smallest that MS-SSIM takes


def rows(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_reconstructions_of_a_split_are_measured(bundle, trained, dataset_dir, tmp_path):
    places = {"dataset_dir": str(dataset_dir), "model_dir": str(trained / "models"), "output_dir": str(tmp_path)}
    bundle("evaluating", "evaluate.yaml", split="validation", image_size=SIZE, **places)

    items = read_datalist(dataset_dir, "validation")
    images = torch.from_numpy(np.stack([read_image(item["image"]) for item in items]))
    images = torch.nn.functional.interpolate(images, size=SIZE, mode="bilinear", antialias=True)
    state = torch.load(trained / "models" / "autoencoder.pt", weights_only=True)
    network = Autoencoder(channels=[8, 8, 16, 16])
    network.load_state_dict(state)
    with torch.no_grad():
        reconstructions = (network.eval().reconstruct(images * 2 - 1) * 0.5 + 0.5).clamp(0, 1)

    written = {name: float(value) for name, value in rows(tmp_path / "metrics.csv")}
    assert written["ms_ssim"] == pytest.approx(ms_ssim(reconstructions, images).mean().item(), abs=1e-4)
    assert written["mse"] == pytest.approx(mse(reconstructions, images).mean().item(), rel=1e-3)
    each = rows(tmp_path / "mse_raw.csv")[1:]
    assert [row[0] for row in each] == [f"validation {number}" for number in range(len(items))]
    assert float(each[0][1]) == pytest.approx(mse(reconstructions, images)[0].item(), rel=1e-3)
