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
        Image.fromarray(np.full((16, 20 + index % 2), index, np.uint8)).save(name)
    return [str(name) for name in names]


def test_sample_reaches_from_the_first_to_the_last_image(paths, monkeypatch):
    tried = []
    monkeypatch.setattr(images, "read_image", lambda path, *_: tried.append(paths.index(path)) or np.zeros((1, 4, 4)))
    check_sample(paths, 1, [4, 4], count=5)
    assert tried == [0, 25, 50, 75, 100]


def test_sizes_are_reported_with_the_number_of_small_images(paths):
    words = check_sample(paths, 1, [16, 21], count=5)
    assert words == "5 of 101 read, 16x20 to 16x21 pixels, 3 smaller than image_size"


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
