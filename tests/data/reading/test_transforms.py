"""Image transforms: sizes, ranges, and cropping."""

import importlib.resources

import numpy as np
import pytest
import torch
from monai.transforms import Compose
from PIL import Image

from medfusion_monai.data.datalist import DataError
from medfusion_monai.data.reading.transforms import ReadImaged, ResizeCenterCropd


def test_path_becomes_a_float_tensor_of_the_pixels(tmp_path):
    values = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    Image.fromarray(values).save(tmp_path / "a.png")
    item = ReadImaged("image", channels=1)({"image": str(tmp_path / "a.png"), "label": 1})
    assert item["label"] == 1
    torch.testing.assert_close(item["image"], torch.from_numpy(values)[None] / 255)


def test_wrong_channels_name_the_file(tmp_path):
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "gray.png")
    with pytest.raises(DataError, match="gray.png.*1 channel"):
        ReadImaged("image", channels=3)({"image": str(tmp_path / "gray.png")})


@pytest.mark.parametrize("shape", [(1, 50, 80), (3, 80, 50), (1, 7, 200), (1, 64, 48), (1, 333, 17)])
@pytest.mark.parametrize("size", [(64, 64), (48, 64), (64, 48)])
@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_result_has_the_target_size_whatever_the_source(shape, size, mode):
    image = torch.rand(shape)
    result = ResizeCenterCropd("image", size, mode)({"image": image})["image"]
    assert result.shape == (shape[0], *size)
    assert 0 <= result.min() <= result.max() <= 1


def test_image_of_the_target_size_is_unchanged():
    image = torch.rand(1, 64, 48)
    assert torch.equal(ResizeCenterCropd("image", (64, 48))({"image": image})["image"], image)


def test_crop_takes_the_centre():
    image = torch.arange(32).float().expand(1, 16, 32) / 32
    result = ResizeCenterCropd("image", (16, 16))({"image": image})["image"]
    torch.testing.assert_close(result, image[:, :, 8:24])


def test_pad_adds_zeros_around_the_whole_image():
    image = torch.full((1, 16, 32), 0.5)
    result = ResizeCenterCropd("image", (32, 32), mode="pad")({"image": image})["image"]
    assert torch.equal(result[:, 8:24], image)
    assert result[:, :8].abs().sum() == 0
    assert result[:, 24:].abs().sum() == 0


def test_halving_a_checkerboard_gives_gray_as_antialiasing_must():
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2
    result = ResizeCenterCropd("image", (16, 16))({"image": board[None].float()})["image"]
    torch.testing.assert_close(result, torch.full_like(result, 0.5), atol=0.05, rtol=0)


@pytest.mark.parametrize(("mode", "factor"), [("crop", 8), ("crop", 32), ("pad", 8)])
def test_whole_factors_come_near_the_average_of_the_area(mode, factor):
    """The filter is a triangle twice as wide as the area, so smooth images agree and noise nearly vanishes."""
    rows, columns = torch.meshgrid(torch.linspace(0, 6, 32 * factor), torch.linspace(0, 6, 32 * factor), indexing="ij")
    smooth = (0.5 + 0.2 * torch.sin(rows) + 0.2 * torch.cos(columns))[None]
    noise = 0.1 * (torch.rand(smooth.shape, generator=torch.Generator().manual_seed(0)) - 0.5)
    result = ResizeCenterCropd("image", (32, 32), mode)({"image": smooth + noise})["image"]
    area = torch.nn.functional.avg_pool2d(smooth, factor)
    assert (result - area).abs()[:, 1:-1, 1:-1].max() < 0.02
    assert (result - area).abs().mean() < 0.005


@pytest.mark.parametrize("shape", [(2848, 4288), (300, 257)])
def test_large_image_is_reduced_as_pillow_reduces_it(shape):
    values = np.random.default_rng(0).random((shape[0] // 4 + 1, shape[1] // 4 + 1), np.float32)
    image = np.kron(values, np.ones((4, 4), np.float32))[: shape[0], : shape[1]].copy()
    result = ResizeCenterCropd("image", (64, 64))({"image": image[None]})["image"][0].numpy()
    scale = 64 / min(shape)
    size = (max(64, round(shape[1] * scale)), max(64, round(shape[0] * scale)))
    expected = np.asarray(Image.fromarray(image, "F").resize(size, Image.Resampling.BILINEAR))
    top, left = (expected.shape[0] - 64) // 2, (expected.shape[1] - 64) // 2
    np.testing.assert_allclose(result, expected[top : top + 64, left : left + 64], atol=1e-4)


@pytest.mark.parametrize("size", [(0, 64), (64,), (64, -1), (64.0, 64), 64, "64", (True, 64)])
def test_size_other_than_two_positive_integers_is_refused(size):
    with pytest.raises(ValueError, match="size is"):
        ResizeCenterCropd("image", size)


def test_unknown_mode_and_channels_are_refused():
    with pytest.raises(ValueError, match="mode is 'stretch'"):
        ResizeCenterCropd("image", (64, 64), mode="stretch")
    with pytest.raises(ValueError, match="channels is 2"):
        ReadImaged("image", channels=2)
    with pytest.raises(ValueError, match="modalities are 'CR'"):
        ReadImaged("image", modalities="CR")


def test_modalities_reach_the_reader(tmp_path):
    sample = importlib.resources.files("pydicom") / "data" / "test_files" / "CT_small.dcm"
    with pytest.raises(DataError, match="CT_small.*Modality CT"):
        ReadImaged("image", channels=1)({"image": str(sample)})
    assert ReadImaged("image", 1, modalities=["CT"])({"image": str(sample)})["image"].shape == (1, 128, 128)


def test_transforms_compose_and_leave_the_item_as_it_was(tmp_path):
    Image.fromarray(np.full((30, 40), 255, np.uint8)).save(tmp_path / "a.png")
    item = {"image": str(tmp_path / "a.png")}
    result = Compose([ReadImaged("image", 1), ResizeCenterCropd("image", [8, 8])])(item)
    torch.testing.assert_close(result["image"], torch.ones(1, 8, 8))
    assert item == {"image": str(tmp_path / "a.png")}
