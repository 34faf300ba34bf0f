import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medfusion_monai.cli import main
from medfusion_monai.data import draw_chest_phantom, prepare_phantoms
from medfusion_monai.metrics.similarity import ms_ssim
from medfusion_monai.networks import Autoencoder, Medfusion, UNet
from medfusion_monai.networks.weights import save_weights
from medfusion_monai.reports.demo import phantom_agreement, print_summary
from medfusion_monai.reports.summary import caption_rows, load_samples, measure_reconstructions, summarize

BUNDLE = Path(__file__).parents[2] / "bundles" / "medfusion_cxr"


class HalfBright:
    """Stands for an autoencoder that halves the distance of each value to 0."""

    def reconstruct(self, image):
        return image / 2


def write_phantoms(folder, labels_of_classes, size=64):
    """Write phantoms of the given labels as samples of classes, with their manifest."""
    folder.mkdir()
    lines = ["file,label,class_name,seed"]
    for number, (name, labels) in enumerate(labels_of_classes.items()):
        for index, label in enumerate(labels):
            image = draw_chest_phantom(index, label, size)[0][0]
            Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(folder / f"{number}_x_{index:06d}.png")
            lines.append(f"{number}_x_{index:06d}.png,{number},{name},{index}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")


def test_reconstructions_are_measured_on_the_unit_range():
    images = torch.rand(5, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    result = measure_reconstructions(HalfBright(), images.split(2))
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


def test_samples_are_those_that_the_manifest_lists(tmp_path):
    write_phantoms(tmp_path / "s", {"a": [0, 0], "a_b": [1], "with space": [1, 0, 1]})
    Image.new("L", (64, 64)).save(tmp_path / "s" / "a_000099.png")  # left by another run
    assert [len(load_samples(tmp_path / "s", name)) for name in ("a", "a_b", "with space")] == [2, 1, 3]
    first = np.rint(draw_chest_phantom(0, 1)[0] * 255) / 255
    assert np.abs(load_samples(tmp_path / "s", "with space", limit=1)[0].numpy() - first).max() < 1e-6
    with pytest.raises(ValueError, match="lists no samples of class 'b', only of"):
        load_samples(tmp_path / "s", "b")


@pytest.fixture
def model_of_other_settings(tmp_path):
    """What a training with other classes and sizes leaves, and the arguments that summarise it."""
    prepare_phantoms(tmp_path / "data", num_images=20, size=48, class_names=("small", "large"))
    write_phantoms(tmp_path / "samples", {"small": [0], "large": [1]}, size=48)
    autoencoder = Autoencoder(channels=(16, 32, 64, 96))
    unet = UNet(channels=(64, 64, 96, 128), embedding_channels=256, norm_groups=16)
    save_weights(Medfusion(autoencoder, unet), tmp_path / "model.pt")
    places = {"bundle": BUNDLE, "dataset-dir": tmp_path / "data", "model-file": tmp_path / "model.pt"}
    places |= {"samples-dir": tmp_path / "samples", "output": tmp_path / "out"}
    return ["summarize", *(part for name, place in places.items() for part in (f"--{name}", str(place)))]


def test_model_of_other_classes_and_size_is_summarised(model_of_other_settings, tmp_path):
    settings = ["--set", "class_names=[small, large]", "--set", "image_size=[48, 48]", "--set", "seed=5"]
    assert main([*model_of_other_settings, *settings]) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["seed"] == 5


@pytest.mark.parametrize(("setting", "words"), [("image_sise=[48, 48]", "no key"), ("image_size=[48", "no YAML")])
def test_setting_that_is_unknown_or_no_yaml_is_refused(setting, words, model_of_other_settings, capsys):
    assert main([*model_of_other_settings, "--set", setting]) == 2
    assert words in capsys.readouterr().err


def test_samples_of_another_size_are_refused(model_of_other_settings, capsys):
    assert main([*model_of_other_settings, "--set", "class_names=[small, large]"]) == 2
    assert "(1, 48, 48), the held-out images (1, 64, 64)" in capsys.readouterr().err


def test_summary_of_a_model_holds_figures_and_picture(tmp_path, capsys):
    prepare_phantoms(tmp_path / "data", num_images=20, size=64)
    write_phantoms(tmp_path / "samples", {"no_cardiomegaly": [0] * 3, "cardiomegaly": [1] * 12})
    autoencoder = Autoencoder(channels=(16, 32, 64, 96))
    unet = UNet(channels=(64, 64, 96, 128), embedding_channels=256, norm_groups=16)
    save_weights(Medfusion(autoencoder, unet), tmp_path / "model.pt")
    arguments = (BUNDLE, tmp_path / "data", tmp_path / "model.pt", tmp_path / "samples", tmp_path / "out")
    extra = {"measured": "heart width", "class_agreement": {"cardiomegaly": 0.5}, "seconds": {"diffusion": 61.0}}
    summary = summarize(*arguments, extra=extra)
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {"ms_ssim", "class_agreement", "seconds", "seed", "versions"} <= summary.keys()
    picture = Image.open(tmp_path / "out" / "picture.png")
    assert picture.size == (210 + 2 * (10 * 66 + 2), 2 * (6 * 66 + 2))  # three rows, one row and two rows
    print_summary(summary, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "heart width fits 'cardiomegaly'" in printed
    assert "50.0%" in printed
    assert "picture.png" in printed


def test_picture_leaves_room_for_its_longest_caption():
    grid = torch.zeros(3, 18, 18)  # one image of 14 pixels within its margins, nine times enlarged
    narrow, wide = (caption_rows(grid, [caption], (14, 14)) for caption in ("a", "sample: " + "name_" * 12))
    assert narrow.width == 210 + 9 * 18
    picture = torch.from_numpy(np.array(wide))
    dark = (picture.float().mean(2) < 128).any(0).nonzero()[:, 0]
    margin = wide.width - 9 * 18
    assert margin > 210
    assert dark[dark < margin].max() < margin - 4  # the text ends before the images begin
