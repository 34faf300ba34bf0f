"""DICOM files of samples from Python: the bytes that inference writes."""

import shutil
from pathlib import Path

import pytest
import torch
from monai.bundle import run
from tiny_models import ROOT, contents, save, tiny

import medfusion_monai as mf
from medfusion_monai.runtime.locks import leave_folders


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return mf.load(save(tiny(), tmp_path_factory.mktemp("dicom") / "models" / "model.pt"), device="cpu")


@pytest.fixture(scope="module")
def images(model):
    return model.sample([1, "no_cardiomegaly"], n=2, seed=3, num_inference_steps=2)


def save_these(model, images, folder, **changes):
    call = {"label": [1, "no_cardiomegaly"], "seed": 3, "num_inference_steps": 2} | changes
    return model.save_dicom(images, folder, **call)


@pytest.mark.parametrize("kind", ["dicom", "dicom_dx"])
def test_files_are_those_of_inference(model, images, kind, tmp_path):
    run(
        "inference",
        config_file=str(ROOT / "bundles/medfusion_cxr/configs/inference.yaml"),
        model_dir=str(model.path.parent),
        output_dir=str(tmp_path / "bundle"),
        device="cpu",
        precision="float32",
        label=[1, 0],
        num_samples=2,
        seed=3,
        num_inference_steps=2,
        output_format=kind,
    )
    leave_folders()
    written = {name: content for name, content in contents(tmp_path / "bundle").items() if name.endswith(".dcm")}
    paths = save_these(model, images, tmp_path / "python", kind=kind)
    assert [path.name for path in paths] == [*sorted(written)[2:], *sorted(written)[:2]]
    assert contents(tmp_path / "python") == written


def test_weights_of_a_zip_can_be_named_after_their_file_is_gone(model, tmp_path):
    shutil.make_archive(str(tmp_path / "bundle"), "zip", model.path.parents[1], "models")
    zipped = mf.load(tmp_path / "bundle.zip", device="cpu")
    assert not Path(zipped.path).exists()
    assert zipped.weights_sha256 == model.weights_sha256


def test_other_file_of_the_same_name_stays(model, images, tmp_path):
    save_these(model, images, tmp_path)
    before = contents(tmp_path)
    save_these(model, images, tmp_path)
    with pytest.raises(ValueError, match="exists with another image, or other settings"):
        save_these(model, images, tmp_path, seed=4)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "png"}, "kind must be one of dicom, dicom_dx"),
        ({"kind": "dicom_gm"}, "does not support images of 1 channels"),
        ({"label": "ill"}, "label 'ill' is not a class"),
        ({"steps": 3}, "settings"),
    ],
)
def test_call_that_cannot_have_sampled_the_images_is_refused(model, images, changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        save_these(model, images, tmp_path / "new", **changes)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda images: images[:3], r"equally many of each of 2 labels.*received shape \(3, 1, 16, 24\)"),
        (lambda images: images[:, :, :8], "images must be"),
        (lambda images: images * torch.nan, "not finite"),
    ],
)
def test_images_that_were_not_sampled_so_are_refused(model, images, spoil, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        save_these(model, spoil(images), tmp_path / "new")
    assert not (tmp_path / "new").exists()
