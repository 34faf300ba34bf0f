"""Uploaded files: read as elsewhere, refused with their own name, and kept nowhere."""

import io
import os
import tempfile
import zlib

import numpy as np
import pytest
import torch
from dicom_files import save_dicom
from PIL import Image
from pydicom import dcmread

from medfusion_monai.model import make_preprocessing
from medfusion_monai.sampling.image_formats import FORMATS
from medfusion_monai.studio.uploads import UploadError, UploadTooLargeError, file_name, read_upload, read_upload_mask

MODEL_SIZE = (16, 24)


def png(pixels):
    body = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(body, "PNG")
    return body.getvalue()


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (40, 50))


@pytest.fixture(params=["memory", "folder"])
def place(request, monkeypatch, tmp_path):
    """Where readers find an upload; whatever is written to the disk lies in the returned folder."""
    if request.param == "folder":
        monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_an_upload_is_read_as_a_file_is_and_leaves_nothing(studio, pixels, place, tmp_path_factory):
    path = tmp_path_factory.mktemp("there") / "scan.png"
    path.write_bytes(png(pixels))
    image = read_upload(studio, path.read_bytes(), "scan.png")
    assert torch.equal(image[0], make_preprocessing(studio.model)({"image": path})["image"])
    assert not list(place.iterdir())


@pytest.mark.parametrize("output_format", ["png", "png16", "nifti", "dicom", "dicom_dx"])
def test_what_the_studio_made_can_be_uploaded_again(studio, output_format):
    image = torch.rand(1, *MODEL_SIZE).numpy()
    content = FORMATS[output_format].encode(image, {"label": 0, "seed": 1})
    assert read_upload(studio, content, "sample").sub(torch.from_numpy(image)).abs().max() < 0.5 / 254


BROKEN = {
    "not an image": (b"%PDF-1.7 not an image", "letter.pdf: is not an image"),
    "empty": (b"", "letter.pdf: is empty"),
    "cut off": (png(np.eye(64) * 255)[:-40], "letter.pdf: cannot be decoded, truncated or damaged"),
    "coloured": (png(np.random.default_rng(0).integers(0, 256, (30, 30, 3))), "letter.pdf: is coloured"),
    "archive": (b"\x1f\x8b" + bytes(400), "letter.pdf: "),
    "DICOM without pixels": (bytes(128) + b"DICM" + bytes(400), "letter.pdf: is a DICOM file"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_a_file_that_cannot_be_used_is_refused_by_the_name_that_it_has_for_the_user(studio, place, content, message):
    with pytest.raises(UploadError, match=message) as caught:
        read_upload(studio, content, "C:\\patients\\letter.pdf")
    assert "/proc" not in str(caught.value)
    assert str(place) not in str(caught.value)
    assert not list(place.iterdir())


def test_dicom_of_another_modality_is_refused(studio, tmp_path, pixels):
    content = FORMATS["dicom"].encode(pixels[None] / 255, {"label": 0})
    header = dcmread(io.BytesIO(content))
    header.Modality = "CT"
    path = save_dicom(tmp_path / "slice.dcm", header)
    with pytest.raises(UploadError, match=r"slice\.dcm: is a DICOM file of Modality CT; accepted are projections"):
        read_upload(studio, path.read_bytes(), "slice.dcm")


def test_an_upload_above_the_limit_is_refused_before_it_is_read(studio):
    with pytest.raises(UploadTooLargeError, match=r"big\.png has 3\.0 MiB, more than 3: reduce its size"):
        read_upload(studio, bytes(studio.limits.upload_bytes + 1), "big.png")


def test_an_image_of_more_pixels_than_memory_allows_is_refused_by_its_header(studio):
    content = bytearray(png(np.zeros((1, 1))))
    content[16:24] = (70_000).to_bytes(4, "big") * 2  # width and height of the header
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    with pytest.raises(UploadError, match="has too many pixels|more than 67 million"):
        read_upload(studio, bytes(content), "huge.png")


def test_a_mask_marks_the_same_part_of_the_resized_image(studio, pixels):
    mask = np.zeros((40, 50))
    mask[:, 25:] = 255
    found = read_upload_mask(studio, png(mask), "mask.png", png(pixels), "scan.png")
    assert found.shape == (1, 1, *MODEL_SIZE)
    assert found[..., 13:].all()
    assert not found[..., :11].any()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((40, 49)), "mask.png: is a mask of 40x49 pixels, but its image scan.png has 40x50"),
        (np.zeros((40, 50)), "mask.png: is a mask that marks nothing"),
        (np.ones((40, 50)), "mask.png: is a mask that covers all"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(studio, pixels, mask, message):
    with pytest.raises(UploadError, match=message):
        read_upload_mask(studio, png(mask), "mask.png", png(pixels), "scan.png")


def test_a_mask_and_its_image_may_have_the_same_name(studio, pixels):
    mask = np.zeros((40, 50))
    mask[10:20, 10:20] = 1
    assert read_upload_mask(studio, png(mask), "a.png", png(pixels), "a.png").any()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("scan.png", "scan.png"),
        ("/home/x/scan.png", "scan.png"),
        ("C:\\x\\scan.png", "scan.png"),
        ("..", ".."),
        ("a\nb\0.png", "ab.png"),
        ("", "upload"),
        ("x/", "upload"),
        ("a" * 200 + ".png", "a" * 96 + ".png"),
    ],
)
def test_a_name_has_neither_folders_nor_control_characters(given, expected):
    assert file_name(given) == expected
