"""Real files as found in hospitals: read correctly, or refused with the reason."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medfusion_monai.data.datalist import DataError
from medfusion_monai.data.reading.images import read_image
from medfusion_monai.data.reading.transforms import ResizeCenterCropd

ODD = Path(os.environ.get("MEDFUSION_DATA", "../shared/data")) / "odd"
pytestmark = pytest.mark.skipif(not ODD.is_dir(), reason=f"real images are not at {ODD}: set MEDFUSION_DATA")


@pytest.mark.parametrize(
    ("name", "shape", "mean", "std"),
    [
        ("armiro_019_L_3342x4095.jpeg", (1, 4095, 3342), 0.4950, 0.1816),
        ("armiro_052_RGBA_256x247.png", (3, 247, 256), 0.5404, 0.2288),
        ("armiro_164.jfif", (3, 821, 797), 0.5128, 0.2201),
        ("armiro_770_is_JPEG.png", (3, 415, 438), 0.5930, 0.1721),
        ("armiro_794_212x197.jpg", (3, 197, 212), 0.5233, 0.2076),
        ("armiro_884_is_WEBP.png", (3, 648, 768), 0.4729, 0.2276),
        ("drishtiGS_001_RGBA_320x273.png", (3, 273, 320), 0.1816, 0.1646),
        ("eyespy_original_4288x2848.jpg", (3, 2848, 4288), 0.1927, 0.2601),
        ("monochrome1.dcm", (1, 1024, 1024), 0.3685, 0.2120),
        ("nih_00001280_004_L_1024.png", (1, 1024, 1024), 0.5835, 0.2691),
        ("nih_00005435_000_RGBA_1024.png", (3, 1024, 1024), 0.6183, 0.1888),
        ("rsna_monochrome2.dcm", (1, 1024, 1024), 0.6315, 0.2120),
    ],
)
def test_file_has_its_shape_and_brightness(name, shape, mean, std):
    image = read_image(ODD / name)
    assert image.shape == shape
    assert (float(image.mean()), float(image.std())) == pytest.approx((mean, std), abs=2e-3)


def test_tomographic_slice_is_refused_by_its_modality():
    path = ODD / "kcr2019_anon_apct_is_CT_16bit_bigendian.dcm"
    with pytest.raises(DataError, match=r"Modality CT; accepted are projections and photographs"):
        read_image(path, channels=1)


def test_tomographic_slice_that_is_asked_for_is_read_with_its_window():
    image = read_image(ODD / "kcr2019_anon_apct_is_CT_16bit_bigendian.dcm", modalities=["CT"])[0]
    assert image.shape == (512, 512)
    assert image[:20].max() == 0  # air outside of the body
    assert 0.3 < np.median(image[200:300, 200:300]) < 0.8  # soft tissue in a window of 400 around 60 HU


@pytest.mark.parametrize(
    "name",
    [
        "armiro_019_L_3342x4095.jpeg",
        "armiro_052_RGBA_256x247.png",
        "armiro_164.jfif",
        "nih_00001280_004_L_1024.png",
        "nih_00005435_000_RGBA_1024.png",
        "rsna_monochrome2.dcm",
    ],
)
def test_radiograph_is_gray_with_lungs_darker_than_the_mediastinum(name):
    image = ResizeCenterCropd("image", (64, 64))({"image": read_image(ODD / name, channels=1)})["image"][0]
    lungs = (image[20:36, 14:22].mean() + image[20:36, 44:52].mean()) / 2
    assert image[20:44, 29:35].mean() > lungs + 0.1


@pytest.mark.parametrize("name", ["armiro_770_is_JPEG.png", "armiro_794_212x197.jpg", "armiro_884_is_WEBP.png"])
def test_radiograph_with_coloured_marks_is_refused_as_gray(name):
    with pytest.raises(DataError, match=f"{name}: is coloured"):
        read_image(ODD / name, channels=1)


def test_monochrome1_is_inverted():
    """The two files have the same stored values and different headers."""
    inverted, plain = (read_image(ODD / name) for name in ("monochrome1.dcm", "rsna_monochrome2.dcm"))
    np.testing.assert_allclose(inverted, 1 - plain, atol=1e-6)


@pytest.mark.parametrize("name", ["armiro_019_L_3342x4095.jpeg", "eyespy_original_4288x2848.jpg"])
def test_large_image_is_reduced_as_pillow_reduces_it(name):
    image = read_image(ODD / name)
    result = ResizeCenterCropd("image", (64, 64))({"image": image})["image"].numpy()
    scale = 64 / min(image.shape[1:])
    size = [max(64, round(side * scale)) for side in reversed(image.shape[1:])]
    planes = [Image.fromarray(plane, "F").resize(size, Image.Resampling.BILINEAR) for plane in image]
    expected = np.stack([np.asarray(plane) for plane in planes])
    top, left = ((side - 64) // 2 for side in expected.shape[1:])
    np.testing.assert_allclose(result, expected[:, top : top + 64, left : left + 64], atol=1e-3)
