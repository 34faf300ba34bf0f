import json

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("SimpleITK", reason="the extra label has SimpleITK")

import SimpleITK

from medfusion_monai.apps.monailabel.result_files import SUFFIXES, edited_bytes, write_image, write_label_map
from medfusion_monai.apps.monailabel.study_files import Study
from medfusion_monai.data.reading.synthetic_marks import marked_synthetic
from medfusion_monai.data.reading.transforms import ResizeCenterCropd

EDIT = {"edit": "counterfactual", "class": "cardiomegaly", "weights_sha256": "ab12"}
AFFINE = np.array([[-1.5, 0, 0, 40], [0, -2.5, 0, 12], [0, 0, 3.0, -7], [0, 0, 0, 1.0]])


@pytest.fixture(autouse=True)
def answers_in(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def image_of(channels):
    return torch.rand(channels, 16, 24, generator=torch.Generator().manual_seed(0))


def study_in(folder, image):
    """Return a study of a NIfTI file with a geometry of its own."""
    path = str(folder / "study.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((24, 16, 1), np.uint8), AFFINE), path)
    return Study(path, image, image, ResizeCenterCropd("mask", image.shape[1:]))


def marks_of(path):
    """Return the mark and the note of a file, as programs of others read them."""
    if path.endswith(".png"):
        texts = Image.open(path).info
        return texts["Synthetic"], json.loads(texts["Comment"])
    if path.endswith((".nii", ".nii.gz")):
        header = nib.load(path).header
        return header["descrip"].item().decode(), json.loads(header.extensions[0].get_content())
    image = SimpleITK.ReadImage(path)
    return image.GetMetaData("Synthetic"), json.loads(image.GetMetaData("Note"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_image_of_an_answer_is_marked_and_keeps_its_pixels_and_geometry(suffix, dtype, channels, tmp_path):
    image = image_of(channels)
    study = study_in(tmp_path, image)
    if suffix == ".png" and dtype == "float32":
        with pytest.raises(ValueError, match="float32 cannot be written as .png"):
            write_image(image, study, suffix, dtype, EDIT)
        return
    path = write_image(image, study, suffix, dtype, EDIT)
    mark, note = marks_of(path)
    assert "edited" in mark
    assert note == EDIT
    if suffix in (".png", ".nii", ".nii.gz"):
        assert marked_synthetic([path]) == [path]
    read = SimpleITK.ReadImage(path)
    scale = {"uint8": 255, "uint16": 65535, "float32": 1.0}[dtype]
    pixels = SimpleITK.GetArrayFromImage(read).reshape(16, 24, channels)[::-1] / scale
    expected = image.numpy().transpose(1, 2, 0)
    assert np.abs(pixels - expected).max() <= 0.51 / scale or np.abs(pixels[::-1] - expected).max() <= 0.51 / scale
    if suffix != ".png":
        reference = SimpleITK.ReadImage(study.path)
        axes = read.GetDimension()  # 2 of NIfTI files in colours, as ITK reads them
        assert read.GetSpacing() == pytest.approx(reference.GetSpacing()[:axes])
        assert read.GetOrigin() == pytest.approx(reference.GetOrigin()[:axes])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_generated_image_is_marked_as_such(suffix):
    mark, _ = marks_of(write_image(image_of(1), None, suffix, "uint8", {"class": "cardiomegaly"}))
    assert "edited" not in mark


def test_label_map_has_no_mark(tmp_path):
    path = write_label_map(np.zeros((16, 24), np.uint8), study_in(tmp_path, image_of(1)), ".nii.gz")
    assert marked_synthetic([path]) == []


@pytest.mark.parametrize("channels", [1, 3])
def test_edited_study_has_its_note(channels, tmp_path):
    content, suffix = edited_bytes(image_of(channels), study_in(tmp_path, image_of(channels)), EDIT)
    (tmp_path / f"edited{suffix}").write_bytes(content)
    mark, note = marks_of(str(tmp_path / f"edited{suffix}"))
    assert mark == "SYNTHETIC, edited by medfusion_monai"
    assert note == EDIT
