"""Memory of `medfusion prepare` and `medfusion check` for very many images."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COUNT = 200_000
GIB = 2**30
CONFIGS = Path(__file__).parents[3] / "bundles" / "medfusion_cxr" / "configs"
MEASURED = """
import resource, sys
from medfusion_monai.cli import main
code = main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
sys.exit(code)
"""
"""Measured before the process ends, when the CUDA libraries of PyTorch take another 117 MiB, whatever was done."""


@pytest.mark.slow
def test_200000_images_are_prepared_and_checked_within_a_gibibyte(tmp_path):
    source = np.random.default_rng(0)
    for number in range(COUNT):
        folder = tmp_path / "images" / f"class_{number % 2}" / f"{number // 1000:04d}"
        if number % 1000 < 2:
            folder.mkdir(parents=True)
        pixels = source.integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:07d}.png", compress_level=1)
    places = ["--root", tmp_path / "images", "--output", tmp_path / "data"]
    places += ["--classes", "class_0=no_cardiomegaly", "class_1=cardiomegaly"]
    subprocess.run([sys.executable, "-m", "medfusion_monai", "prepare", "folder", *places], check=True)
    assert (tmp_path / "data" / "datalist.json").read_text().count('"image":') == COUNT
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < GIB
    keys = {"dataset_dir": str(tmp_path / "data"), "image_size": [32, 32], "trial_step": False}
    keys |= {"output_dir": str(tmp_path / "runs"), "model_dir": str(tmp_path / "models")}
    settings = [word for key, value in keys.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    check = ["check", *(str(CONFIGS / name) for name in ("train.yaml", "demo.yaml")), *settings]
    printed = subprocess.run(
        [sys.executable, "-c", MEASURED, *check], check=True, capture_output=True, text=True
    ).stdout
    assert "no problems" in printed
    assert int(printed.rpartition("peak ")[2]) < GIB
