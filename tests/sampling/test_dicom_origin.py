"""What DICOM files say of edited images: that they are edited, and whom they may show."""

import shutil
import subprocess
from io import BytesIO

import numpy as np
import pytest
from dicom_notes import EDIT, SAMPLE, cases, patient
from pydicom import Dataset, dcmread

from medfusion_monai.sampling.dicom_format import KINDS
from medfusion_monai.sampling.dicom_origin import is_edited
from medfusion_monai.sampling.image_formats import FORMATS


def encode(name="dicom", note=EDIT, **changes):
    channels = KINDS[name].channels[0]
    return FORMATS[name].encode(np.full((channels, 9, 7), 0.5, np.float32), note | changes)


def header(*args, **changes):
    return dcmread(BytesIO(encode(*args, **changes)))


@pytest.mark.parametrize("name", KINDS)
def test_edited_image_says_what_was_done_and_that_it_may_show_a_patient(name):
    file = header(name)
    assert is_edited(file)
    assert file[0x0008001C].value == "YES"
    assert file.ImageType[0] == "DERIVED"
    assert name == "dicom_op" or file.ImageType[1] == "SECONDARY"
    for part in ("counterfactual", "class 1 cardiomegaly", "strength 0.5", "guidance_scale 2.0", "ab" * 32):
        assert part in file.DerivationDescription
        assert part in file.ImageComments
    assert "spacing" not in file.DerivationDescription, "not chosen"
    assert "may show a real patient" in file.ImageComments
    assert "may show a real patient" in file.PatientComments
    (maker,) = file.ContributingEquipmentSequence
    (purpose,) = maker.PurposeOfReferenceCodeSequence
    assert (purpose.CodeValue, purpose.CodeMeaning) == ("109103", "Modifying Equipment")
    assert maker.SoftwareVersions == "9.8.7"


@pytest.mark.parametrize("name", KINDS)
def test_edited_image_names_nobody_and_claims_nothing_that_nobody_knows(name):
    content = encode(name)
    file = dcmread(BytesIO(content))
    for word in (b"Doe", b"1234567", b"NO REAL PATIENT", b"shows no real patient", b"does not exist"):
        assert word not in content
    assert (file.PatientBirthDate, file.PatientSex, file.AccessionNumber, file.StudyDate) == ("", "", "", "")
    assert file.get("BurnedInAnnotation", "YES") == "YES", "the source may show a name"
    assert "PatientIdentityRemoved" not in file, "the pixels may still identify"
    assert file.InstanceNumber == 3, "not the number in the name of the source, which may be an identifier"


@pytest.mark.parametrize("name", KINDS)
def test_patient_and_study_are_kept_where_they_are_given(name):
    file = header(name, keep_patient="True", patient=patient() | {"BurnedInAnnotation": "NO"})
    for keyword, value in patient().items():
        if keyword != "SourceImageSequence":
            assert file[keyword].value == value, keyword
    assert file.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.3.4"
    assert file.PatientIdentityRemoved == "NO"
    assert file.BurnedInAnnotation == "NO"
    assert file[0x0008001C].value == "YES"
    assert is_edited(file)
    assert "not named" not in file.PatientComments


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("keyword", ["Laterality", "ImageLaterality"])
def test_in_the_study_of_a_patient_side_and_orientation_are_those_of_the_source(name, keyword):
    file = header(name, patient=patient() | {keyword: "L", "PatientOrientation": ["R", "F"]})
    assert [file.get(each) for each in ("Laterality", "ImageLaterality") if file.get(each)] == ["L"]
    assert list(file.PatientOrientation) == ["R", "F"]


@pytest.mark.parametrize("name", KINDS)
def test_in_the_study_of_a_patient_no_spacing_and_no_date_is_invented(name):
    file = header(name, patient=patient())
    assert "PixelSpacing" not in file
    assert "ImagerPixelSpacing" not in file
    assert file.get("ContentDate", "20240102") == "20240102"
    assert file.get("ContentTime", "101112") == "101112"


def test_identifiers_repeat_and_differ_where_the_image_differs():
    assert encode() == encode()
    whole = header()
    for change in ({"file": "a"}, {"source": "b"}, {"score": 0.5, "flag": "yes"}):
        assert header(**change).SOPInstanceUID == whole.SOPInstanceUID, change
    for change in (
        {"source_pixels": "ef"},
        {"own_label": 1},
        {"index": 1},
        {"label": 0},
        {"seed": 1},
        {"strength": "0.6"},
        {"edit": "variations"},
        {"keep_patient": "True"},
        {"weights_sha256": "cd" * 32},
    ):
        assert header(**change).SOPInstanceUID != whole.SOPInstanceUID, change


def test_edits_of_a_run_are_one_study_and_one_series():
    first, second = header(), header(source_pixels="ef", file="other.dcm", instance=4)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "PatientID", "StudyID"):
        assert first[keyword].value == second[keyword].value
    assert header(strength="0.6").StudyInstanceUID != first.StudyInstanceUID
    assert header(note=SAMPLE).StudyInstanceUID != first.StudyInstanceUID
    kept = header(keep_patient="True", patient=patient())
    assert kept.StudyInstanceUID == "1.2.3"
    assert kept.SeriesInstanceUID != first.SeriesInstanceUID


def test_image_of_a_gan_is_not_said_to_be_of_a_diffusion_model():
    assert "by a latent diffusion model" in header(note=SAMPLE | {"sampler": "unipc"}).DerivationDescription
    assert "by a generative adversarial network" in header(note=SAMPLE | {"sampler": "gan"}).DerivationDescription


def test_frames_between_seeds_are_one_series_and_say_between_what():
    ends = {"end_label": 0, "end_class_name": "a", "end_seed": 7, "frames": 4}
    frames = [header(note=SAMPLE | ends | {"frame": at, "file": f"frame_{at}.dcm"}) for at in range(4)]
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "PatientID"):
        assert len({frame[keyword].value for frame in frames}) == 1
    assert len({frame.SOPInstanceUID for frame in frames}) == 4
    assert [frame.InstanceNumber for frame in frames] == [1, 2, 3, 4]
    assert "frame 3 of 4 from class 1 b, seed 5, to class 0 a, seed 7" in frames[2].ImageComments
    assert frames[2].SeriesDescription == "Synthetic, frames, b to a"
    assert "noise between that of two seeds" in frames[2].DerivationDescription
    other = header(note=SAMPLE | ends | {"frame": 0, "seed": 6})
    assert other.StudyInstanceUID != frames[0].StudyInstanceUID


def test_sample_is_not_edited():
    assert not is_edited(header(note=SAMPLE))
    assert not is_edited(Dataset())


# Neither is an error of the file: the validator of 2022 does not know Synthetic Data, added in 2023, and two of its
# modules contradict each other on Source Image Sequence, which may be empty (PS3.3, C.8.17.2).
NEWER = ("(0008,001c)", "SourceImageSequence")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy of dicom3tools is not installed")
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("case", ["edit", "edit of a patient"])
def test_validator_of_dicom3tools_finds_no_error_in_edited_images(name, case, tmp_path):
    path = tmp_path / "image.dcm"
    path.write_bytes(encode(name, cases(name)[case]))
    found = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False).stderr
    errors = [line for line in found.splitlines() if line.startswith("Error")]
    assert any(line.startswith("Warning") for line in found.splitlines()), "it was read at all"
    assert [line for line in errors if not any(word in line for word in NEWER)] == []
