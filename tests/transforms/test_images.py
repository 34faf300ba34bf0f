"""Image transforms: sizes, ranges, and what is cut."""

import numpy as np
import pytest
import torch
from monai.transforms import Compose
from PIL import Image

from medfusion_monai.data import DataError
from medfusion_monai.transforms import ReadImaged, ResizeCenterCropd


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


@pytest.mark.parametrize("size", [(0, 64), (64,), (64, -1), (64.0, 64), 64, "64", (True, 64)])
def test_size_other_than_two_positive_integers_is_refused(size):
    with pytest.raises(ValueError, match="size is"):
        ResizeCenterCropd("image", size)


def test_unknown_mode_and_channels_are_refused():
    with pytest.raises(ValueError, match="mode is 'stretch'"):
        ResizeCenterCropd("image", (64, 64), mode="stretch")
    with pytest.raises(ValueError, match="channels is 2"):
        ReadImaged("image", channels=2)


def test_transforms_compose_and_leave_the_item_as_it_was(tmp_path):
    Image.fromarray(np.full((30, 40), 255, np.uint8)).save(tmp_path / "a.png")
    item = {"image": str(tmp_path / "a.png")}
    result = Compose([ReadImaged("image", 1), ResizeCenterCropd("image", [8, 8])])(item)
    torch.testing.assert_close(result["image"], torch.ones(1, 8, 8))
    assert item == {"image": str(tmp_path / "a.png")}
