"""Sets of images whose values use a small part of their range are found, and read by a stated range."""

import nibabel as nib
import numpy as np
import pytest
from dicom_files import save_dicom
from PIL import Image
from pydicom.dataset import Dataset

from medfusion_monai.data.datalist import DataError, read_datalist
from medfusion_monai.data.preparing.folder import ImageRules, prepare_folder
from medfusion_monai.data.reading.brightness import ImageSurvey
from medfusion_monai.data.reading.images import inspect_images, read_image

RAMP = np.linspace(0, 4095, 400).astype(np.uint16).reshape(20, 20)


def _tiff_32(path):
    Image.fromarray(RAMP.astype(np.int32)).save(path, format="TIFF")


def _nifti(path):
    image = nib.Nifti1Image(RAMP.T.astype(np.int16), None)
    image.header["cal_max"] = 1e5
    image.header["cal_min"] = -1
    path.write_bytes(image.to_bytes())


def _dicom(path, **changes):
    dataset = Dataset()
    dataset.Rows, dataset.Columns = RAMP.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation, dataset.SamplesPerPixel = 0, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.WindowCenter, dataset.WindowWidth = 50000, 99000
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2"
    dataset.PixelData = RAMP.tobytes()
    for name, value in changes.items():
        setattr(dataset, name, value)
    save_dicom(path, dataset)


@pytest.fixture
def folder(tmp_path):
    """Write four images by a function into two classes, and give their folder."""

    def write(save, values=lambda index: ()):
        for index in range(4):
            path = tmp_path / "root" / "ab"[index % 2] / f"{index}.img"
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path, *values(index))
        return tmp_path / "root"

    return write


def _as_png(path, values=RAMP):
    Image.fromarray(values).save(path, format="PNG")


def _prepare(root, value_range=None, **rules):
    options = {"fractions": (0.5, 0.5, 0), "rules": ImageRules(value_range=value_range, **rules)}
    return prepare_folder(root, root.parent / "out", **options)


@pytest.mark.parametrize(
    ("save", "words"),
    [
        (_as_png, r"4 images are dark: .* up to 4095 of 65535 .* 12-bit data in 16-bit files.* --range 0 4095"),
        (_tiff_32, r"4 images are dark: .* up to 4095 of 65535 .* --range 0 4095"),
        (_nifti, r"4 images are dark: .* up to 0\.041 of the range that their headers state"),
        (_dicom, r"4 images are dark: .* up to 0\.0363 of the range that their headers state"),
    ],
)
def test_values_in_a_small_part_of_their_range_are_an_error(folder, save, words):
    root = folder(save)
    with pytest.raises(DataError, match=words):
        _prepare(root)
    assert not (root.parent / "out").exists()


@pytest.mark.parametrize("save", [_as_png, _tiff_32, _nifti, _dicom])
def test_stated_range_is_written_into_the_images(folder, save):
    root = folder(lambda path: save(path))
    path = root / "a" / "0.img"
    expected = RAMP / np.float32(4095)
    np.testing.assert_allclose(read_image(path, 1, value_range=(0, 4095))[0], expected, atol=1e-6)
    values = iter(range(4))
    for path in sorted(root.glob("*/*.img")):  # four different images
        _as_png(path, np.roll(RAMP, next(values)))
    document = _prepare(root, (0, 4095))
    assert "values 0 to 4095" in document["source"]
    items = [item for split in ("training", "validation") for item in read_datalist(root.parent / "out", split)]
    assert sorted(item["image"][-len("a/0.img.png") :] for item in items) == [
        "a/0.img.png",
        "a/2.img.png",
        "b/1.img.png",
        "b/3.img.png",
    ]
    for item in items:
        original = root / item["image"][-len("a/0.img.png") : -len(".png")]
        expected = np.asarray(Image.open(original)) / 4095
        np.testing.assert_allclose(read_image(item["image"], 1)[0], expected, atol=0.6 / 65535)
        assert item["pixels"] == inspect_images([item["image"]])[0][item["image"]]


def test_values_outside_the_stated_range_are_clipped(tmp_path):
    _as_png(tmp_path / "a", np.array([[0, 100, 150, 300]], np.uint16))
    np.testing.assert_allclose(read_image(tmp_path / "a", value_range=(100, 200)), [[[0, 0, 0.5, 1]]])


def test_eight_bit_colour_is_scaled_by_the_stated_range(tmp_path):
    _as_png(tmp_path / "a", np.array([[[0, 50, 100]]], np.uint8))
    np.testing.assert_allclose(read_image(tmp_path / "a", value_range=(0, 100))[:, 0, 0], [0, 0.5, 1])


@pytest.mark.parametrize("value_range", [(1, 1), (5, 0), (0, float("inf")), (float("nan"), 1)])
def test_range_that_is_none_is_refused(folder, value_range):
    root = folder(_as_png)
    with pytest.raises(ValueError, match="the lower first"):
        _prepare(root, value_range)


def test_bright_set_is_an_error(folder):
    root = folder(_as_png, lambda index: (65535 - np.roll(RAMP, index),))
    with pytest.raises(DataError, match=r"images are bright: .* from 61440 of 65535 .* --range LOW HIGH"):
        _prepare(root)


def test_some_dark_images_are_warned_of_and_on_the_contact_sheet(folder, caplog):
    caplog.set_level("INFO")
    root = folder(_as_png, lambda index: (np.roll(RAMP, index) * (16 if index else 1),))
    _prepare(root)
    assert "1 of 4 images use less than an eighth of the range, first" in caplog.text
    assert "brightness 0.0" in caplog.text
    sheet = np.asarray(Image.open(root.parent / "out" / "contact_sheet.png"))
    assert sheet.shape == (130, 4 * 130, 3)
    assert sheet[:128].max() > 240
    assert sheet[:, :128].max() < 17


def test_constant_and_tiny_images_are_counted_or_left_out(folder):
    images = [RAMP * 16, np.zeros((20, 20), np.uint16), np.roll(RAMP, 1) * 16, RAMP[:15] * 16]
    root = folder(_as_png, lambda index: (images[index],))
    with pytest.raises(DataError, match=r"(?s)2 of 4 images cannot be used.*is constant.*is tiny, 15x20 pixels"):
        _prepare(root)
    _as_png(root / "b" / "good.img", np.roll(RAMP, 2) * 16)
    _as_png(root / "b" / "too.img", np.roll(RAMP, 3) * 16)
    assert _prepare(root, skip_unreadable=True)["counts"]["skipped"] == 2


def test_percentiles_are_those_of_all_pixels():
    survey = ImageSurvey(["a", "b"])
    survey.add("a", np.linspace(0, 1, 1000, dtype=np.float32).reshape(1, 20, 50))
    survey.add("b", np.linspace(0, 1, 1000, dtype=np.float32).reshape(1, 20, 50))
    assert survey.describe().startswith("brightness 0.05 to 0.95 (")
    assert survey.doubts() == []


def test_one_hot_pixel_does_not_hide_dark_images():
    survey = ImageSurvey(["a"])
    pixels = (RAMP / np.float32(65535))[None]
    pixels[0, 0, 0] = 1
    survey.add("a", pixels)
    assert "95% of all pixels are below 0.06" in survey.doubts()[0]


def test_image_that_is_flat_but_for_a_line_is_counted():
    survey = ImageSurvey(["a"])
    survey.add("a", np.pad(np.zeros((1, 39, 40), np.float32), ((0, 0), (1, 0), (0, 0)), constant_values=1))
    assert any("1 of 1 images have one value in 90% of their pixels" in doubt for doubt in survey.doubts())


def test_dicom_whose_high_bit_is_above_its_stored_bits_is_refused(tmp_path):
    _dicom(tmp_path / "a.dcm", HighBit=15)
    with pytest.raises(DataError, match="HighBit 15 and BitsStored 12, but HighBit must be 11"):
        read_image(tmp_path / "a.dcm")
