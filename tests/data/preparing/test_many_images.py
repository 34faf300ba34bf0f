"""Memory of `medfusion prepare` and `medfusion check` for very many images."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_training import TINY_NETWORKS

COUNT = 200_000
GIB = 2**30
CONFIGS = Path(__file__).parents[3] / "bundles" / "medfusion_cxr" / "configs"
CHECK = """
import resource, sys
from medfusion_monai.cli import main
code = main(["check", *sys.argv[1:]])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
sys.exit(code)
"""
"""Says its peak before it ends, when the CUDA libraries of PyTorch take 117 MiB more, whatever was done."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of a datalist of very many tiny images, and the peak memory of preparing it in bytes."""
    root, source = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    for number in range(COUNT):
        folder = root / "images" / f"class_{number % 2}" / f"{number // 1000:04d}"
        if number % 1000 < 2:
            folder.mkdir(parents=True)
        pixels = source.integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:07d}.png", compress_level=1)
    options = ["--root", root / "images", "--output", root / "data"]
    options += ["--classes", "class_0=no_cardiomegaly", "class_1=cardiomegaly"]
    subprocess.run([sys.executable, "-m", "medfusion_monai", "prepare", "folder", *options], check=True)
    return root / "data", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


@pytest.mark.slow
def test_200000_images_are_prepared_within_a_gibibyte(prepared):
    folder, peak = prepared
    assert (folder / "datalist.json").read_text().count('"image":') == COUNT
    assert peak < GIB


@pytest.mark.slow
def test_200000_images_are_checked_within_a_gibibyte(prepared, tmp_path):
    keys = {**TINY_NETWORKS, "dataset_dir": str(prepared[0]), "trial_step": False}
    keys |= {"output_dir": str(tmp_path / "runs"), "model_dir": str(tmp_path / "models")}
    settings = [word for key, value in keys.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    command = [sys.executable, "-c", CHECK, CONFIGS / "train.yaml", CONFIGS / "demo.yaml", *settings]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "no problems" in printed
    assert int(printed.rpartition("peak ")[2]) < GIB
