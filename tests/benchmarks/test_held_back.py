import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

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
