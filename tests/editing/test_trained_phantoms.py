"""Edits of held-out phantoms by the demo's model: the class moves, the rest stays."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

import medfusion_monai as mf
from medfusion_monai.demo.phantoms.draw_chest import RATIO_RANGES, draw_chest_phantom
from medfusion_monai.demo.phantoms.measurements import MEASUREMENTS
from medfusion_monai.demo.run_demo import run_demo
from medfusion_monai.diffusion.guidance import guided_denoiser
from medfusion_monai.editing import classify, counterfactual, invert
from medfusion_monai.editing.inversion import from_inversion

ROOT = Path(__file__).parents[2]
FIRST_SEED = 900_000_000
"""Of phantoms that no demo draws."""
COUNT = 128
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The model of ``make demo``, if it has been run, or one that is trained now."""
    place = ROOT / "runs" / "demo" / "cxr"
    if not (place / "models" / "model.pt").is_file():
        place = tmp_path_factory.mktemp("demo")
        run_demo(ROOT / "bundles" / "medfusion_cxr", place)
    return mf.load(place / "models", device="cpu")


@pytest.fixture(scope="module")
def phantoms(demo):
    """Images, labels and the truth of each."""
    labels, size = [index % 2 for index in range(COUNT)], tuple(demo.image_size)
    drawn = [draw_chest_phantom(FIRST_SEED + index, label, size) for index, label in enumerate(labels)]
    images, truths = zip(*drawn, strict=True)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels), truths


def outside_hearts(image, truth):
    """Columns (W,) that neither the heart nor a wider one of the same patient reaches, nor the window of SSIM."""
    middle = (truth["heart_left"] + truth["heart_right"]) / 2
    reach = RATIO_RANGES[1][1] * truth["thorax_width"] / 2 + 6
    columns = torch.arange(image.shape[-1])
    return (columns - middle).abs() > reach


def test_inversion_leads_back_to_the_latents(demo, phantoms):
    images, labels, _ = phantoms
    inversion = invert(demo, images, labels)
    denoiser = guided_denoiser(demo.network.unet, labels)
    with torch.no_grad():
        back = from_inversion(denoiser, inversion, demo.schedule)
    assert (back - demo.encode(images)).abs().max() < 1e-2
    assert inversion.defects.abs().max() < 1e-2
    assert inversion.noisy_latents.std() == pytest.approx(1.0, abs=0.2)


def test_counterfactual_moves_the_heart_and_leaves_the_rest(demo, phantoms):
    images, labels, truths = phantoms
    shown = counterfactual(demo, images, 1 - labels, labels)
    heart = MEASUREMENTS["cxr"]
    ratios = heart.measure(shown)
    moved = np.where(labels == 1, ratios < heart.threshold, ratios > heart.threshold)
    assert moved.mean() >= 0.85
    similarities = []
    for image, other, truth in zip(images, shown, truths, strict=True):
        _, full = structural_similarity_index_measure(other[None], image[None], data_range=1.0, return_full_image=True)
        similarities.append(float(full[0, 0][:, outside_hearts(image, truth)].mean()))
    assert np.mean(similarities) >= 0.95


def test_label_of_a_phantom_is_found(demo, phantoms):
    images, labels, _ = phantoms
    assert (classify(demo, images).labels == labels).double().mean() >= 0.85
