"""The Python API: a trained model in five lines."""

import csv
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import medfusion_monai as mf
from medfusion_monai.demo.phantoms.families import prepare_phantoms
from medfusion_monai.diffusion.inferer import LatentDiffusionSampler
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.model import make_sampler, save_model
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.runtime.errors import WeightsError


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder ``models`` of a tiny training, whose weights yield images with contrast."""
    from monai.bundle import run

    from medfusion_monai.runtime.locks import leave_folders

    folder = tmp_path_factory.mktemp("api") / "medfusion_cxr"
    configs = Path(shutil.copytree(Path(__file__).parents[2] / "bundles/medfusion_cxr/configs", folder / "configs"))
    prepare_phantoms(folder.parent / "data", num_images=20, size=32)
    tiny = {"autoencoder_channels": [8, 8, 16, 16], "unet_channels": [16, 16, 16, 32], "unet_embedding_channels": 32}
    tiny |= {
        "unet_norm_groups": 8,
        "image_size": [32, 32],
        "device": "cpu",
        "trial_step": False,
        "precision": "float32",
    }
    tiny |= {"autoencoder_steps": 2, "diffusion_steps": 2, "num_inference_steps": 3, "guidance_scale": 2.0}
    files = [str(configs / "train.yaml"), str(configs / "demo.yaml")]
    run("training", config_file=files, dataset_dir=str(folder.parent / "data"), **tiny)
    leave_folders()
    state = torch.load(folder / "models" / "model.pt", weights_only=True)
    source = torch.Generator().manual_seed(0)
    for name in ("autoencoder.conv_out.weight", "unet.conv_out.weight", "unet.class_embedding.weight"):
        state[name] = torch.randn(state[name].shape, generator=source)
    torch.save(state, folder / "models" / "model.pt")
    return folder / "models"


@pytest.fixture(scope="module")
def model(models):
    return mf.load(models / "model.pt", device="cpu")


def test_five_lines_of_the_readme(models, monkeypatch):
    monkeypatch.chdir(models.parent)
    import medfusion_monai as mf

    model = mf.load("models/model.pt")
    images = model.sample("cardiomegaly", n=4, seed=0)
    assert images.shape == (4, 1, 32, 32)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1


def test_model_describes_itself(model):
    assert model.class_names == ["no_cardiomegaly", "cardiomegaly"]
    assert (model.image_size, model.image_channels) == ([32, 32], 1)
    assert model.device == torch.device("cpu")
    assert model.to("cpu") is model
    assert model.sampler.settings()["guidance_scale"] == 2.0
    assert model.sampler.num_inference_steps == 3


def test_samples_are_those_of_the_bundle(model, models, tmp_path):
    from monai.bundle import run

    from medfusion_monai.runtime.locks import leave_folders

    settings = {"model_dir": str(models), "output_dir": str(tmp_path), "device": "cpu", "precision": "float32"}
    config = str(models.parent / "configs" / "inference.yaml")
    run("inference", config_file=config, num_samples=3, seed=5, label=[0, 1], batch_size=6, **settings)
    leave_folders()
    images = model.sample(["no_cardiomegaly", 1], n=3, seed=5)
    with open(tmp_path / "manifest.csv", newline="") as file:
        names = [row["file"] for row in csv.DictReader(file)]
    for image, name in zip(images, names, strict=True):
        written = np.asarray(Image.open(tmp_path / name))
        assert np.abs(image[0].numpy() * 255 - written).max() <= 0.5 + 1e-3


def test_sample_does_not_depend_on_the_batch(model):
    together = model.sample("cardiomegaly", n=5, seed=1)
    alone = model.sample("cardiomegaly", n=5, seed=1, batch_size=2)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together, model.sample("cardiomegaly", n=5, seed=2))


def test_latents_decode_to_the_samples_and_encode_to_latents(model):
    latents = model.sample_latents("cardiomegaly", n=2, seed=3)
    assert latents.shape == (2, 8, 4, 4)
    images = model.decode(latents)
    torch.testing.assert_close(images, model.sample("cardiomegaly", n=2, seed=3))
    assert model.encode(images).shape == latents.shape
    torch.testing.assert_close(model.reconstruct(images), model.decode(model.encode(images)))


def test_choices_change_the_sample(model):
    usual = model.sample(1, n=1)
    assert not torch.equal(usual, model.sample(1, n=1, num_inference_steps=5))
    assert model.sample(1, n=1, sampler="unipc", num_inference_steps=4).shape == usual.shape


def test_interval_of_the_guidance_is_a_choice(model):
    guided, part = model.sample(1, n=2), model.sample(1, n=2, guidance_interval=[0.3, 3])
    assert not torch.equal(part, guided)
    assert torch.equal(model.sample(1, n=2, guidance_interval=[0, 1e6]), guided)


def test_interval_of_the_weights_belongs_to_their_guidance(model, tmp_path):
    sampler = LatentDiffusionSampler(model.schedule, None, 2, 2.0, 0.0, 1, guidance_interval=[0.3, 3])
    save_model(model.network, tmp_path / "model.pt", sampler)
    saved = mf.load(tmp_path / "model.pt", device="cpu")
    assert saved.sampler.settings() == sampler.settings()
    assert make_sampler(saved, sampler="unipc").guidance_interval == [0.3, 3.0]
    plain = make_sampler(saved, guidance_scale=1.0)
    assert (plain.guidance_scale, plain.guidance_interval, plain.negative_label) == (1.0, None, None)


def test_bundle_folder_and_zip_load_as_well_as_a_file(model, models, tmp_path):
    with zipfile.ZipFile(tmp_path / "medfusion_cxr.zip", "w") as archive:
        for path in [*models.iterdir(), *(models.parent / "configs").iterdir()]:
            archive.write(path, f"medfusion_cxr/{path.parent.name}/{path.name}")
    expected = model.sample(0)
    for place in (models, models.parent, tmp_path / "medfusion_cxr.zip"):
        assert torch.equal(mf.load(place, device="cpu").sample(0), expected)


@pytest.mark.parametrize(
    ("label", "words"),
    [("cardiomegally", "0 no_cardiomegaly, 1 cardiomegaly"), (2, "label 2 is not a class"), ([], "at least one class")],
)
def test_unknown_class_is_refused_with_the_known_ones(model, label, words):
    with pytest.raises(ValueError, match=words):
        model.sample(label)


@pytest.mark.parametrize(("n", "seed", "word"), [(0, 0, "n must be"), (1, -1, "seed must be"), (1.5, 0, "n must be")])
def test_counts_that_make_no_sense_are_refused(model, n, seed, word):
    with pytest.raises(ValueError, match=word):
        model.sample(0, n=n, seed=seed)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(1, 32, 32), r"\(B, C, H, W\)"),
        (torch.full((1, 1, 32, 32), 255.0), r"in \[0, 1\], received 255"),
        (torch.full((1, 1, 32, 32), float("nan")), r"in \[0, 1\]"),
        (torch.zeros(1, 3, 32, 32), "3 channels"),
        (torch.zeros(1, 1, 30, 32), "not divisible by 8"),
    ],
)
def test_images_of_another_form_are_refused(model, images, words):
    with pytest.raises(ValueError, match=words):
        model.reconstruct(images)


def test_weights_from_elsewhere_can_be_saved_and_loaded(model, tmp_path):
    network = Medfusion(model.network.autoencoder, model.network.unet)
    sampler = LatentDiffusionSampler(NoiseSchedule(prediction_type="v_prediction"), num_inference_steps=2, eta=0.0)
    with pytest.raises(ValueError, match="no class_names or no image_size"):
        save_model(network, tmp_path / "model.pt", sampler)
    network.class_names, network.image_size = ["well", "ill"], [24, 40]
    save_model(network, tmp_path / "model.pt", sampler)
    loaded = mf.load(tmp_path / "model.pt", device="cpu")
    assert loaded.sample("ill").shape == (1, 1, 24, 40)
    assert loaded.sampler.settings() == sampler.settings()


def test_weights_that_are_not_there_are_named(tmp_path):
    with pytest.raises(WeightsError, match=r"models/model\.pt do not exist: run training first"):
        mf.load(tmp_path / "models")


def test_weights_that_have_to_be_fetched_say_how(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "large_files.yml").write_text("large_files:\n- path: models/model.pt\n  url: https://localhost/x\n")
    with pytest.raises(WeightsError, match=r"monai\.bundle download_large_files --bundle_path"):
        mf.load(tmp_path)


def test_weights_without_their_description_are_refused(models, tmp_path):
    shutil.copy(models / "model.pt", tmp_path)
    with pytest.raises(WeightsError, match=r"model\.json is missing"):
        mf.load(tmp_path / "model.pt")


def test_import_of_the_package_does_not_import_torch():
    program = "import sys, medfusion_monai; assert medfusion_monai.__version__; print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "False"
