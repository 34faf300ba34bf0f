import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
phase = import_module("adversarial_phase")

IMAGES = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
NOISE = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.25
PATIENTS = [str(number // 2) for number in range(12)]


def softened(factor):
    """Images with a factor of their contrast: a texture of its square."""
    return phase.compare(IMAGES, (IMAGES - 0.5) * factor + 0.5)


def test_texture_is_the_share_of_fine_power_and_the_correlation_does_not_depend_on_it():
    found = softened(0.5)
    torch.testing.assert_close(found["texture"], torch.full((12,), 0.25).double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(found["fine correlation"], torch.ones(12).double(), rtol=1e-5, atol=0)


def test_invented_texture_has_power_but_no_correlation():
    found = phase.compare(IMAGES, NOISE)
    assert found["texture"].median() == pytest.approx(1, abs=0.1)
    assert found["fine correlation"].abs().max() < 0.1


@pytest.mark.parametrize(
    ("without", "with_them", "back"), [(0.96, 0.999, True), (0.99, 0.999, False), (0.999, 0.96, False)]
)
def test_texture_is_back_where_the_gain_is_large_enough(without, with_them, back):
    found = phase.judge({"without": softened(without), "with": softened(with_them)}, PATIENTS)
    assert found["gain"]["value"] == pytest.approx(with_them**2 - without**2, abs=1e-6)
    assert found["back"] is back


def test_texture_is_not_back_at_the_cost_of_similarity():
    found = phase.judge({"without": softened(0.9), "with": phase.compare(IMAGES, NOISE)}, PATIENTS)
    assert found["gain"]["low"] > phase.LEAST_GAIN
    assert not found["back"]
