import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from tiny_models import save, tiny

from medfusion_monai.data.datalist import read_datalist
from medfusion_monai.demo.phantoms.families import prepare_phantoms

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
held_back = import_module("held_back")


def test_power_of_each_band_is_relative_to_that_of_the_reference():
    images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert held_back.band_powers(0.5 * images + 0.3, images) == pytest.approx([0.25] * 4)  # brightness is left out


def test_lost_detail_shows_in_the_highest_band_alone():
    images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    spectrum = torch.fft.fft2(images)
    radius = torch.fft.fftfreq(32)[:, None].square() + torch.fft.fftfreq(32)[None].square()
    blurred = torch.fft.ifft2(spectrum * (radius < 0.25**2)).real
    assert held_back.band_powers(blurred, images) == pytest.approx([1, 1, 1, 0], abs=1e-4)


def test_sets_are_equally_large_with_and_without_samples(tmp_path):
    prepare_phantoms(tmp_path / "data", num_images=40, size=32, seed=0)
    save(tiny(image_size=(32, 32)), tmp_path / "model.pt")
    model = held_back.load(tmp_path / "model.pt", "cpu")
    held_out = [item["image"] for item in read_datalist(tmp_path / "data", "validation")]
    sets = held_back.read_sets(model, tmp_path / "data", held_out)
    assert set(sets) == {name for pair in held_back.PAIRS[:3] for name in pair}
    assert {len(images) for images in sets.values()} == {len(held_out)}
    with pytest.raises(ValueError, match="set --most"):
        held_back.read_sets(model, tmp_path / "data", held_out * 20)
