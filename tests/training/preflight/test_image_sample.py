"""A sample of images."""

import numpy as np
import pytest
from PIL import Image

from medfusion_monai.data.datalist import DataError
from medfusion_monai.training.preflight import image_sample as images
from medfusion_monai.training.preflight.image_sample import check_sample


@pytest.fixture
def paths(tmp_path):
    names = [tmp_path / f"{index:03d}.png" for index in range(101)]
    for index, name in enumerate(names):
        pixels = np.full((16, 20 + index % 2), index, np.uint8)
        pixels[0, :10] = 255
        Image.fromarray(pixels).save(name)
    return [str(name) for name in names]


def test_sample_reaches_from_the_first_to_the_last_image(paths, monkeypatch):
    tried = []
    monkeypatch.setattr(images, "read_image", lambda path, *_: tried.append(paths.index(path)) or np.eye(16)[None])
    check_sample(paths, 1, [4, 4], count=5)
    assert tried == [0, 25, 50, 75, 100]


def test_sizes_are_reported_with_the_number_of_small_images(paths):
    words = check_sample(paths, 1, [16, 21], count=5)
    assert words.startswith("5 of 101 read, 16x20 to 16x21 pixels, 3 smaller than image_size, brightness 0.00 to ")


def test_few_images_are_all_read(paths):
    assert check_sample(paths[:3], 1, [8, 8]).startswith("3 of 3 read")
    assert check_sample(paths[:1], 1, [8, 8]).startswith("1 of 1 read")


def test_all_unreadable_images_are_listed(paths):
    for index in (0, 100):
        open(paths[index], "wb").close()
    with pytest.raises(DataError, match=r"(?s)2 of a sample of 5 images cannot be used.*000\.png.*100\.png"):
        check_sample(paths, 1, [8, 8], count=5)


def test_images_to_be_skipped_are_counted(paths):
    open(paths[0], "wb").close()
    assert check_sample(paths, 1, [8, 8], unreadable="skip", count=5).endswith("1 cannot be read and will be skipped")


def test_sample_without_a_readable_image_is_refused_even_with_skip(paths):
    with pytest.raises(DataError, match="3 of a sample of 3 images"):
        check_sample(paths[:3], 3, [8, 8], unreadable="skip")


def test_constant_and_tiny_images_are_listed_even_with_skip(paths):
    Image.fromarray(np.zeros((16, 20), np.uint8)).save(paths[0])
    Image.fromarray(np.eye(15, dtype=np.uint8)).save(paths[100])
    with pytest.raises(
        DataError, match=r"(?s)2 of a sample of 5 images.*000\.png: is constant.*100\.png: is tiny, 15x15"
    ):
        check_sample(paths, 1, [8, 8], unreadable="skip", count=5)


def test_twelve_bit_values_in_sixteen_bit_files_are_named(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.linspace(0, 4095, 400).astype(np.uint16).reshape(20, 20)).save(path)
    words = check_sample([str(path)], 1, [8, 8])
    assert "brightness 0.00 to 0.06" in words
    assert "values are up to 4095 of 65535" in words
    assert "--range 0 4095" in words


def test_contact_sheet_shows_images_as_the_network_will_see_them(paths, tmp_path):
    check_sample(paths, 1, [8, 12], contact_sheet=str(tmp_path / "sheet.png"), count=10)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 10, 8 * 14, 3)
    assert sheet[7, 11].tolist() == [0] * 3  # the first image is black except for its first row
    assert sheet[17, 14 + 11].tolist() == [100] * 3  # the last of ten
