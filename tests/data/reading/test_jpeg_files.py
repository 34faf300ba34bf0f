"""JPEG files of which a part is missing are found; whole files of all kinds are read."""

import os
from io import BytesIO
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from dicom_files import save_dicom
from PIL import Image, ImageFile
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from medfusion_monai.data.datalist import DataError
from medfusion_monai.data.reading.images import read_image

REAL_DATA = Path(os.environ.get("MEDFUSION_DATA", "../shared/data"))
KINDS = {
    "sequential": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
    "progressive with restarts": {"progressive": True, "restart_marker_blocks": 7},
    "optimized, full colour": {"optimize": True, "subsampling": 0},
}
END = b"\xff\xd9"


@pytest.fixture(autouse=True)
def large_buffer(monkeypatch):
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 2**20)  # Pillow needs it to write such files into memory


def picture(mode, height=100, width=77):
    down, across = np.mgrid[:height, :width]
    waves = np.stack([128 + 100 * np.sin(across / (7 + index) + down / 9) for index in range(4)], -1)
    noisy = waves + np.random.default_rng(0).normal(0, 10, waves.shape)
    planes = {"L": 0, "RGB": slice(3), "CMYK": slice(4)}[mode]
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)[..., planes].copy(), mode)


def packed(mode="L", **options):
    file = BytesIO()
    picture(mode).save(file, "JPEG", **options)
    return file.getvalue()


def coded(data):
    """Give the first and last position of what follows the header of the first scan."""
    return data.index(b"\xff\xda") + 14, len(data) - 2


def read(folder, data):
    (folder / "a.jpg").write_bytes(data)
    return read_image(folder / "a.jpg")


@pytest.mark.filterwarnings("ignore:'mode' parameter")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_cut_file_with_an_end_marker_is_refused(tmp_path, mode, kind):
    data = packed(mode, **KINDS[kind])
    first, last = coded(data)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(DataError, match=r"a\.jpg: is an incomplete JPEG|cannot be decoded"):
            read(tmp_path, data[: first + int(share * (last - first))] + END)


@pytest.mark.filterwarnings("ignore:'mode' parameter")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_file_without_its_middle_third_is_refused(tmp_path, mode, kind):
    data = packed(mode, **KINDS[kind])
    first, last = coded(data)
    third = (last - first) // 3
    with pytest.raises(DataError, match=r"a\.jpg: is an incomplete JPEG|cannot be decoded"):
        read(tmp_path, data[: first + third] + data[last - third :])


def test_missing_part_is_named(tmp_path):
    data = packed()
    first, last = coded(data)
    with pytest.raises(DataError, match="incomplete JPEG: its coded data end before the image does"):
        read(tmp_path, data[: (first + last) // 2] + END)
    data = packed(progressive=True)
    with pytest.raises(DataError, match="incomplete JPEG: it ends before its last scan"):
        read(tmp_path, data[: data.rindex(b"\xff\xda")] + END)
    data = packed(restart_marker_blocks=5)  # 10 x 13 blocks
    with pytest.raises(DataError, match="incomplete JPEG: 24 of 25 restart markers are there in order"):
        read(tmp_path, data[: data.rindex(b"\xff\xd0")] + END)
    second = data.index(b"\xff\xd1")
    third = data.index(b"\xff\xd1", second + 2)
    with pytest.raises(DataError, match="incomplete JPEG: 17 of 25 restart markers are there in order"):
        read(tmp_path, data[:second] + data[third:])  # eight in a row: their numbers go on


@pytest.mark.filterwarnings("ignore:'mode' parameter")
def test_whole_files_of_all_kinds_are_read(tmp_path):
    for mode, progressive, restarts, quality in product(("L", "RGB", "CMYK"), (False, True), (0, 1, 4), (20, 95)):
        data = packed(mode, progressive=progressive, restart_marker_blocks=restarts, quality=quality)
        with Image.open(BytesIO(data)) as image:
            expected = np.asarray(image.convert("RGB" if mode == "CMYK" else mode), np.float32) / 255
        found = read(tmp_path, data).transpose(1, 2, 0)
        np.testing.assert_allclose(found, expected.reshape(found.shape), atol=1e-6)


@pytest.mark.parametrize("value", [128, (128, 128, 128)])
@pytest.mark.parametrize("options", KINDS.values())
def test_whole_file_that_ends_in_the_gray_of_missing_data_is_read(tmp_path, value, options):
    pixels = np.asarray(picture("L" if value == 128 else "RGB")).copy()
    pixels[60:] = value
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    assert read(tmp_path, file.getvalue())[0, -1, -1] == np.float32(128 / 255)


def test_trailing_bytes_thumbnails_and_fill_bytes_are_no_part_of_the_image(tmp_path):
    exif = Image.Exif()
    exif[0x9286] = packed()  # a JPEG within the header
    data = packed("RGB", exif=exif, comment=b"\xff\xd9\xff\xda")
    expected = read(tmp_path, data)
    np.testing.assert_array_equal(read(tmp_path, data + b"trailing \xff\xda bytes"), expected)
    np.testing.assert_array_equal(read(tmp_path, data + packed()[:300]), expected)
    np.testing.assert_array_equal(read(tmp_path, data[:-2] + b"\xff\xff" + END), expected)


def test_photograph_with_its_preview_is_read(tmp_path):
    picture("RGB").save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[picture("RGB", 32, 32)])
    assert read_image(tmp_path / "a.jpg").shape == (3, 100, 77)


def test_cut_jpeg_in_a_dicom_file_is_refused(tmp_path):
    data = packed()
    first, last = coded(data)
    dataset = Dataset()
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 100, 77, 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2"
    for part, words in ((data, None), (data[: (first + last) // 2] + END, "its JPEG is incomplete")):
        dataset.PixelData = encapsulate([part])
        dataset["PixelData"].is_undefined_length = True
        save_dicom(tmp_path / "a.dcm", dataset, uid.JPEGBaseline8Bit)
        if words is None:
            assert read_image(tmp_path / "a.dcm").shape == (1, 100, 77)
        else:
            with pytest.raises(DataError, match=words):
                read_image(tmp_path / "a.dcm")


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="needs real images")
def test_real_photographs_are_read_and_their_halves_refused(tmp_path):
    paths = sorted(path for path in REAL_DATA.glob("*/**/*") if path.suffix.lower() in (".jpg", ".jpeg"))
    for path in paths[:: len(paths) // 60]:
        data = path.read_bytes()
        read_image(path)
        first, last = coded(data)
        with pytest.raises(DataError, match="incomplete JPEG|cannot be decoded"):
            read(tmp_path, data[: (first + last) // 2] + END)
