"""Memory of `medfusion prepare` for very many images."""

import resource
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

COUNT = 200_000
GIB = 2**30


@pytest.mark.slow
def test_200000_images_are_prepared_within_a_gibibyte(tmp_path):
    source = np.random.default_rng(0)
    for number in range(COUNT):
        folder = tmp_path / "images" / f"class_{number % 2}" / f"{number // 1000:04d}"
        if number % 1000 < 2:
            folder.mkdir(parents=True)
        pixels = source.integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:07d}.png", compress_level=1)
    places = ["--root", tmp_path / "images", "--output", tmp_path / "data"]
    subprocess.run([sys.executable, "-m", "medfusion_monai", "prepare", "folder", *places], check=True)
    assert (tmp_path / "data" / "datalist.json").read_text().count('"image":') == COUNT
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < GIB
