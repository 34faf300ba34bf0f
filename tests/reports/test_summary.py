import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medfusion_monai.data import draw_chest_phantom, prepare_phantoms
from medfusion_monai.metrics.similarity import ms_ssim
from medfusion_monai.networks import Autoencoder, Medfusion, UNet
from medfusion_monai.networks.weights import save_weights
from medfusion_monai.reports.demo import phantom_agreement, print_summary
from medfusion_monai.reports.summary import load_samples, measure_reconstructions, summarize


class HalfBright:
    """Stands for an autoencoder that halves the distance of each value to 0."""

    def reconstruct(self, image):
        return image / 2


def write_phantoms(folder, labels_of_classes):
    """Write phantoms into the files of both classes, of the given labels."""
    folder.mkdir()
    for name, labels in labels_of_classes.items():
        for index, label in enumerate(labels):
            image = draw_chest_phantom(index, label)[0][0]
            Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(folder / f"{name}_{index:06d}.png")


def test_reconstructions_are_measured_on_the_unit_range():
    images = torch.rand(5, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    result = measure_reconstructions(HalfBright(), images, batch_size=2)
    expected = 0.25 + images / 2  # (2x - 1) / 2 brought back to [0, 1]
    assert result["mse"] == pytest.approx(float((expected - images).square().mean()), rel=1e-5)
    assert result["ms_ssim"] == pytest.approx(float(ms_ssim(expected, images).mean()), rel=1e-5)
    assert result["held_out_images"] == 5
    assert "3x3" in result["ms_ssim_settings"]


def test_agreement_counts_hearts_on_the_side_of_their_class(tmp_path):
    write_phantoms(tmp_path / "s", {"no_cardiomegaly": [0, 0, 0, 1], "cardiomegaly": [1, 1, 0, 0]})
    assert phantom_agreement(tmp_path / "s") == {"no_cardiomegaly": 0.75, "cardiomegaly": 0.5}


def test_folder_without_samples_is_refused(tmp_path):
    with pytest.raises(ValueError, match="run inference first"):
        load_samples(tmp_path, "cardiomegaly")


def test_summary_of_a_model_holds_figures_and_picture(tmp_path, capsys):
    bundle = Path(__file__).parents[2] / "bundles" / "medfusion_cxr"
    prepare_phantoms(tmp_path / "data", num_images=20, size=64)
    write_phantoms(tmp_path / "samples", {"no_cardiomegaly": [0] * 3, "cardiomegaly": [1] * 12})
    autoencoder = Autoencoder(channels=(16, 32, 64, 96))
    unet = UNet(channels=(64, 64, 96, 128), embedding_channels=256, norm_groups=16)
    save_weights(Medfusion(autoencoder, unet), tmp_path / "model.pt")
    arguments = (bundle, tmp_path / "data", tmp_path / "model.pt", tmp_path / "samples", tmp_path / "out")
    summary = summarize(*arguments, extra={"class_agreement": {"cardiomegaly": 0.5}, "seconds": {"diffusion": 61.0}})
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {"ms_ssim", "class_agreement", "seconds", "seed", "versions"} <= summary.keys()
    picture = Image.open(tmp_path / "out" / "picture.png")
    assert picture.size == (190 + 2 * (10 * 66 + 2), 2 * (6 * 66 + 2))  # three rows, one row and two rows
    print_summary(summary, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "50.0%" in printed
    assert "picture.png" in printed
