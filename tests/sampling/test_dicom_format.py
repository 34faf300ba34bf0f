"""DICOM files of sampled images: what they say, that they repeat, and what other programs find in them."""

import shutil
import subprocess
from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import UID

from medfusion_monai.data.reading.images import read_image
from medfusion_monai.sampling.dicom_format import KINDS
from medfusion_monai.sampling.image_formats import FORMATS

NOTE = {
    "synthetic": True,
    "generator": "medfusion_monai",
    "file": "1_cardiomegaly/00003.dcm",
    "label": 1,
    "class_name": "cardiomegaly",
    "seed": 12345,
    "sampler": "unipc",
    "num_inference_steps": "30",
    "guidance_scale": "1.0",
    "weights_sha256": "ab" * 32,
    "version": "9.8.7",
}


def image_of(channels, size=(9, 7)):
    return np.random.default_rng(0).random((channels, *size), dtype=np.float32)


def encode(name="dicom", channels=None, **changes):
    channels = channels or FORMATS[name].channels[0]
    return FORMATS[name].encode(image_of(channels), NOTE | changes)


def header(*args, **changes):
    return dcmread(BytesIO(encode(*args, **changes)))


@pytest.mark.parametrize("name", KINDS)
def test_file_says_that_it_is_synthetic_and_how_it_was_made(name):
    file = header(name)
    assert file[0x0008001C].value == "YES"
    assert list(file.ImageType[:1]) == ["DERIVED"]
    assert file.BurnedInAnnotation == "NO"
    (maker,) = file.ContributingEquipmentSequence
    (purpose,) = maker.PurposeOfReferenceCodeSequence
    assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("109100", "DCM")
    assert purpose.CodeMeaning == "Synthesizing Equipment"
    assert maker.SoftwareVersions == file.SoftwareVersions == "9.8.7"
    assert "ab" * 32 in maker.ContributionDescription
    for part in ("class 1 cardiomegaly", "seed 12345", "sampler unipc", "num_inference_steps 30", "ab" * 32):
        assert part in file.ImageComments
    assert "NO REAL PATIENT" in str(file.PatientName)
    assert file.PatientID.startswith("SYNTHETIC-")
    assert (file.PatientBirthDate, file.PatientSex, file.AccessionNumber, file.StudyDate) == ("", "", "", "")
    assert file.InstanceNumber == 4


def test_default_is_a_derived_secondary_capture():
    file = header()
    assert UID(file.SOPClassUID).name == "Secondary Capture Image Storage"
    assert list(file.ImageType) == ["DERIVED", "SECONDARY"]
    assert file.ConversionType == "SYN"


@pytest.mark.parametrize(("name", "channels"), [(name, each) for name in KINDS for each in KINDS[name].channels])
def test_pixels_are_those_of_the_png(name, channels, tmp_path):
    image = image_of(channels)
    for kind in (name, "png"):
        (tmp_path / kind).write_bytes(FORMATS[kind].encode(image, NOTE))
    assert np.array_equal(read_image(tmp_path / name), read_image(tmp_path / "png"))


def test_same_call_gives_the_same_bytes_and_every_difference_another_identifier():
    assert encode() == encode()
    whole = header()
    for change in ({"seed": 1}, {"label": 0}, {"weights_sha256": "cd" * 32}, {"num_inference_steps": "20"}):
        assert header(**change).SOPInstanceUID != whole.SOPInstanceUID, change


def test_images_of_a_run_are_one_study_of_one_patient_with_a_series_per_class():
    first, second = header(), header(seed=1, file="1_cardiomegaly/00004.dcm")
    other = header(label=0, class_name="no_cardiomegaly", file="0_no_cardiomegaly/00001.dcm")
    for keyword in ("StudyInstanceUID", "StudyID", "PatientID"):
        assert first[keyword].value == second[keyword].value == other[keyword].value
    assert first.SeriesInstanceUID == second.SeriesInstanceUID != other.SeriesInstanceUID
    assert (first.SeriesNumber, other.SeriesNumber) == (2, 1)
    assert first.SeriesDescription == "Synthetic, cardiomegaly"
    another = header(weights_sha256="cd" * 32)
    assert another.StudyInstanceUID != first.StudyInstanceUID
    assert another.PatientID != first.PatientID


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_identifiers_are_uuids_under_2_25(keyword):
    uid = header()[keyword].value
    assert UID(uid).is_valid
    root, arc, number = uid.split(".")
    assert (root, arc) == ("2", "25")
    assert len(uid) <= 64
    assert int(number) >> 76 & 0xF == 8, "version 8, of a hash"
    assert int(number) >> 62 & 0x3 == 2


def test_class_name_of_any_script_and_length_fits():
    name = "Kardiomegalie, 心脏肥大 " * 20
    file = header(class_name=name)
    assert len(file.SeriesDescription) <= 64
    assert "心脏肥大" in file.ImageComments


def test_own_class_of_an_x_ray_and_of_a_tile():
    x_ray, tile = header("dicom_dx"), header("dicom_gm")
    assert (x_ray.Modality, x_ray.PresentationIntentType, x_ray.PhotometricInterpretation) == (
        "DX",
        "FOR PRESENTATION",
        "MONOCHROME2",
    )
    assert (tile.Modality, tile.PhotometricInterpretation) == ("GM", "RGB")
    assert tile.SpecimenDescriptionSequence[0].SpecimenIdentifier == "SYNTHETIC"


# Neither is an error of the file: the validator of 2022 does not know Synthetic Data, added in 2023, and two of its
# modules contradict each other on Source Image Sequence, which may be empty (PS3.3, C.8.17.2).
NEWER = ("(0008,001c)", "SourceImageSequence")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy of dicom3tools is not installed")
@pytest.mark.parametrize(("name", "channels"), [(name, each) for name in KINDS for each in KINDS[name].channels])
def test_validator_of_dicom3tools_finds_no_error(name, channels, tmp_path):
    path = tmp_path / "image.dcm"
    path.write_bytes(encode(name, channels))
    found = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False).stderr
    errors = [line for line in found.splitlines() if line.startswith("Error")]
    assert any(line.startswith("Warning") for line in found.splitlines()), "it was read at all"
    assert [line for line in errors if not any(word in line for word in NEWER)] == []
