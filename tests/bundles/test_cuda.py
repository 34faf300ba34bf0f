import csv

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.gpu


def test_both_phases_train_on_cuda(bundle, dataset_dir, tmp_path):
    places = {"model_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "runs")}
    bundle("training", dataset_dir=str(dataset_dir), device="cuda", num_workers=2, **places)
    model = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert all(value.device.type == "cpu" and torch.isfinite(value).all() for value in model.values())


def test_image_is_the_same_on_cuda_and_on_the_cpu(bundle, lively, tmp_path):
    for device in ("cpu", "cuda"):
        places = {"model_dir": str(lively), "output_dir": str(tmp_path / device), "device": device}
        bundle("inference", "inference.yaml", num_samples=2, **places)
    with open(tmp_path / "cpu" / "manifest.csv", newline="") as file:
        names = [row["file"] for row in csv.DictReader(file)]
    for name in names:
        first, second = (np.asarray(Image.open(tmp_path / device / name)).astype(int) for device in ("cpu", "cuda"))
        assert np.abs(first - second).max() <= 3  # float32 sums in another order
