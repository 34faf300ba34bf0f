import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
power = import_module("copy_guard_power")


@pytest.fixture
def folder(tmp_path):
    """Images of 20 patients, two each: the gray value is three times the patient's number, one more for the second."""
    (tmp_path / "images").mkdir()
    lines = ["filename,patient_id"]
    for patient in range(20):
        for number in range(2):
            name = f"{patient}_{number}.png"
            Image.fromarray(np.full((32, 32), 3 * patient + number, np.uint8)).save(tmp_path / "images" / name)
            lines.append(f"{name},{patient}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_halves_hold_one_image_each_of_other_patients(folder):
    values = [sorted((power.xrays(folder, half, 0, 16)[:, 0, 0, 0] * 255).round().int().tolist()) for half in range(2)]
    assert power.HALVES == ("reported", "development")
    assert values == [[3 * patient for patient in range(first, 20, 2)] for first in (1, 0)]
    assert not torch.equal(power.xrays(folder, 0, 0, 16), power.xrays(folder, 0, 1, 16))


def test_phantoms_differ_by_half_and_draw(monkeypatch):
    monkeypatch.setattr(power, "OTHERS", 2 - power.TRAINING - power.HELD_OUT)  # two images
    drawn = [power.phantoms(half, draw, 16) for half in range(2) for draw in range(2)]
    assert all(len(images) == 2 for images in drawn)
    assert all(not torch.equal(drawn[i], drawn[j]) for i in range(4) for j in range(i))


def test_draws_are_added_up():
    draws = [{"found": {"blur": n}, "copies": 100, "alarms": a, "others": 500} for n, a in ((100, 5), (90, 0))]
    found = power.add(draws)
    assert found["recall"]["blur"]["value"] == 190 / 200
    assert found["false_alarms"]["value"] == 5 / 1000
