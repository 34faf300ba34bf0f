import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import save, tiny

import medfusion_monai as mf
from medfusion_monai.apps.monailabel.study_files import (
    Study,
    in_file_order,
    read_study,
    seen_part,
    to_study_size,
    upright_mask,
)
from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.data.reading.images import read_image
from medfusion_monai.data.reading.transforms import ResizeCenterCropd
from medfusion_monai.model import make_preprocessing

DIRECTIONS = ["LPS", "RAS", "LAS", "PSR", "ASL", "SRP", "RSA"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return mf.load(save(tiny(), tmp_path_factory.mktemp("label") / "model.pt"), device="cpu")


def study_of(size, model_size, mode="crop"):
    resize = ResizeCenterCropd("mask", model_size, mode)
    pixels = torch.rand(1, *size, generator=torch.Generator().manual_seed(0))
    return Study("study.png", pixels, resize({"mask": pixels})["mask"], resize)


def nifti(path, directions, shape=(5, 7)):
    """Write a NIfTI file whose axes point to these directions, each pixel another value."""
    orientation = nib.orientations.axcodes2ornt(directions)
    affine = np.zeros((4, 4))
    for axis, (target, sign) in enumerate(orientation):
        affine[int(target), axis] = sign * (axis + 1.5)
    affine[3, 3] = 1.0
    values = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    nib.save(nib.Nifti1Image(values[..., None], affine), path)
    return values


def test_study_is_read_as_the_training_images_were(model, tmp_path):
    path = str(tmp_path / "a.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)).save(path)
    study = read_study(path, model)
    assert torch.equal(study.image, make_preprocessing(model)({"image": path})["image"])
    assert study.size == (40, 50)


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_map_of_a_nifti_study_has_the_order_of_its_file(directions, tmp_path):
    path = str(tmp_path / "a.nii.gz")
    values = nifti(path, directions)
    upright = np.rint(read_image(path)[0] * 255).astype(np.uint8)
    assert np.array_equal(in_file_order(upright, path), values.T)  # ITK's rows are the second axis


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_mask_of_a_client_is_turned_as_its_study(directions, tmp_path):
    path = str(tmp_path / "a.nii.gz")
    values = nifti(path, directions)
    upright = torch.from_numpy(read_image(path))
    study = Study(path, upright, upright, ResizeCenterCropd("mask", upright.shape[1:]))
    assert torch.equal(upright_mask(values.T > 12, study), upright > 12.5 / 255)


def test_colours_are_turned_together(tmp_path):
    path = str(tmp_path / "a.nii.gz")
    nifti(path, "RAS")
    upright = np.random.default_rng(0).random((7, 5, 3))
    channels = [in_file_order(upright[..., index], path) for index in range(3)]
    assert np.array_equal(in_file_order(upright, path), np.stack(channels, -1))


def test_mask_of_another_size_is_refused():
    with pytest.raises(DataError, match="label has 4x5 pixels, but the study 30x20"):
        upright_mask(np.ones((5, 4)), study_of((20, 30), (16, 24))._replace(path=__file__))


def test_same_size_is_returned_as_it_is():
    study = study_of((16, 24), (16, 24))
    assert torch.equal(to_study_size(study.image, study), study.image)
    assert bool(seen_part(study).all())


@pytest.mark.parametrize("mode", ["crop", "pad"])
@pytest.mark.parametrize("size", [(64, 96), (40, 96), (64, 60), (9, 13), (61, 35)])
def test_what_the_model_sees_comes_back_to_its_place(size, mode):
    study = study_of(size, (16, 24), mode)
    rows, columns = torch.linspace(0, 1, size[0]), torch.linspace(0, 1, size[1])
    pixels = (0.5 * rows[:, None] + 0.5 * columns)[None]
    seen = study.resize({"mask": pixels})["mask"]
    back = to_study_size(seen, study)
    assert back.shape == pixels.shape
    inner = seen_part(study)
    assert (back - pixels).abs()[0][inner].max() < 0.07  # of a ramp from 0 to 1: half a pixel of the model's


def test_part_that_is_cut_off_is_not_seen():
    seen = seen_part(study_of((32, 96), (16, 24)))
    assert seen[:, :24].sum() == seen[:, 72:].sum() == 0
    assert bool(seen[:, 24:72].all())
    assert bool(seen_part(study_of((32, 96), (16, 24), "pad")).all())


def test_series_is_read_where_its_nifti_file_lies(model, tmp_path):
    nifti(str(tmp_path / "1.2.3.nii.gz"), "LPS", (24, 16))
    (tmp_path / "1.2.3").mkdir()
    Image.fromarray(np.full((16, 24), 100, np.uint8)).save(tmp_path / "1.2.3" / "x.png")
    assert torch.equal(read_study(str(tmp_path / "1.2.3.nii.gz"), model).image, torch.full((1, 16, 24), 100 / 255))
    Image.fromarray(np.full((16, 24), 100, np.uint8)).save(tmp_path / "1.2.3" / "y.png")
    with pytest.raises(DataError, match="series has 2 images"):
        read_study(str(tmp_path / "1.2.3.nii.gz"), model)


def test_photograph_that_is_stored_turned_is_refused(model, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((24, 16), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    with pytest.raises(DataError, match="stored turned"):
        read_study(str(tmp_path / "a.jpg"), model)


def test_file_that_is_no_image_is_refused(model, tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(DataError, match=r"a\.png"):
        read_study(str(tmp_path / "a.png"), model)
