"""The proofs of edits on phantoms: what they plant and measure, and that they run for a family."""

import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import CLASSES, save, tiny

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))


@pytest.fixture(scope="module")
def proofs():
    return import_module("edit_proofs")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tiny(CLASSES, image_size=(32, 32)), tmp_path_factory.mktemp("proofs") / "model.pt")


def test_step_across_an_edge_is_that_of_the_pixels_beside_it(proofs):
    images = torch.zeros(2, 1, 8, 10)
    images[0, :, :, 5:] = 0.3
    images[1] = torch.arange(10) * 0.1
    masks = torch.zeros(2, 1, 8, 10, dtype=torch.bool)
    masks[..., 5:] = True
    assert proofs.edge_steps(images, masks).tolist() == pytest.approx([0.3, 0.1])


@pytest.mark.parametrize("modality", ["cxr", "fundus", "histo"])
def test_planted_lesion_is_where_its_mask_is(proofs, modality):
    draw = proofs.FAMILIES[modality].draw
    images = torch.from_numpy(np.stack([draw(seed, 0, 64)[0] for seed in range(3)]))
    phantoms = proofs.Phantoms(modality, images, torch.zeros(3), [{}] * 3)
    planted, masks = proofs.plant(phantoms, 4)
    changed = (planted - images).abs().amax(1).numpy()
    assert (changed[~masks] < changed[masks].max() / 2).all()
    assert all((change[mask] > 0.02).mean() > 0.7 for change, mask in zip(changed, masks, strict=True))
    assert masks.sum((1, 2)).tolist() == pytest.approx([np.pi * 16] * 3, rel=0.1)


def test_all_proofs_run_and_are_written(proofs, saved, tmp_path, monkeypatch, capsys):
    places = ["--json", str(tmp_path / "figures.json"), "--picture", str(tmp_path / "rows.png")]
    monkeypatch.setattr(sys, "argv", ["edit_proofs", "--model", str(saved), "--count", "2", *places])
    proofs.main()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert 0 <= figures["counterfactuals"]["moved"] <= 1
    assert set(figures["lesions"]) == {f"AUC, radius {radius} of 128" for radius in (3, 6, 12)}
    assert figures["seams"]["ratio of the steps at the edge"] > 0
    assert "seams" in capsys.readouterr().out
    with Image.open(tmp_path / "rows.png") as picture:
        assert picture.size == (2 * 32, 10 * 32)
