"""Patients are found by paths or DICOM headers, and no identifier is written."""

import json
import re
import shutil

import numpy as np
import pytest
from dicom_files import save_dicom
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from medfusion_monai.cli import main
from medfusion_monai.data.preparing.patients import SALT_NAME, PatientsByDicom, PatientsByPattern
from medfusion_monai.data.preparing.splits import DataError


def _dicom(path, patient, seed):
    header = Dataset()
    header.SOPClassUID, header.SOPInstanceUID, header.Modality = SecondaryCaptureImageStorage, "1.2.3", "DX"
    header.PatientName = "Doe^Jane"
    if patient is not None:
        header.PatientID = patient
    header.Rows = header.Columns = 16
    header.SamplesPerPixel, header.PhotometricInterpretation, header.PixelRepresentation = 1, "MONOCHROME2", 0
    header.BitsAllocated = header.BitsStored = 8
    header.HighBit = 7
    header.PixelData = np.random.default_rng(seed).integers(0, 256, (16, 16), np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_dicom(path, header)


@pytest.fixture
def studies(tmp_path):
    """Two classes of five patients with two images each."""
    for number in range(20):
        patient = number // 2
        _dicom(tmp_path / "root" / ("sick", "well")[patient % 2] / f"{number:02}.dcm", f"MRN-{1000 + patient}", number)
    return tmp_path


def _prepare(folder, *options, output="out"):
    arguments = ["prepare", "folder", "--root", str(folder / "root"), "--output", str(folder / output)]
    assert main([*arguments, "--fractions", "0.6", "0.2", "0.2", *options]) == 0
    return json.loads((folder / output / "datalist.json").read_text())


def _home(document):
    return {
        item["image"][-6:]: (split, item["patient"])
        for split in ("training", "validation", "test")
        for item in document[split]
    }


def test_patients_of_dicom_stay_together_and_are_hashed(studies):
    document = _prepare(studies, "--patient-from-dicom")
    home = _home(document)
    assert all(home[f"{2 * patient:02}.dcm"] == home[f"{2 * patient + 1:02}.dcm"] for patient in range(10))
    assert len({patient for _, patient in home.values()}) == 10
    assert all(re.fullmatch("[0-9a-f]{16}", patient) for _, patient in home.values())
    text = (studies / "out" / "datalist.json").read_text()
    salt = (studies / "out" / SALT_NAME).read_text().strip()
    assert not any(word in text for word in ("MRN", "Doe", salt))
    assert "patients by salted hashes of DICOM's PatientID" in document["source"]


def test_salt_is_random_private_and_used_again(studies):
    first = _prepare(studies, "--patient-from-dicom")
    file = studies / "out" / SALT_NAME
    assert file.stat().st_mode & 0o777 == 0o600
    assert _prepare(studies, "--patient-from-dicom") == first
    assert _prepare(studies, "--patient-from-dicom", output="other")["training"] != first["training"]
    (studies / "third").mkdir()
    shutil.copy(file, studies / "third")
    assert _prepare(studies, "--patient-from-dicom", output="third")["training"] == first["training"]
    file.write_text("abc\n")
    with pytest.raises(DataError, match=r"patient_salt\.txt: is not a salt of 64"):
        PatientsByDicom(studies / "out")


@pytest.mark.parametrize("patient", [None, "", " "])
def test_file_without_a_patient_is_listed_and_nothing_written(studies, patient, capsys):
    _dicom(studies / "root" / "sick" / "20.dcm", patient, 20)
    (studies / "root" / "well" / "note.txt").write_text("no image")
    arguments = ["--root", str(studies / "root"), "--output", str(studies / "out"), "--patient-from-dicom"]
    assert main(["prepare", "folder", *arguments]) == 2
    error = capsys.readouterr().err
    assert "2 of 22 images" in error
    assert "20.dcm" in error
    assert "note.txt" in error
    assert not (studies / "out").exists()


def test_patients_by_a_pattern_of_the_path(studies):
    home = _home(_prepare(studies, "--patient-pattern", r"\d(\d)\.dcm$"))
    assert {name: patient for name, (_, patient) in home.items()} == {f"{n:02}.dcm": str(n % 10) for n in range(20)}
    assert all(home[f"0{digit}.dcm"] == home[f"1{digit}.dcm"] for digit in range(10))
    assert not (studies / "out" / SALT_NAME).exists()


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("(", "is not a regular expression"), ("a", "has 0 groups"), ("(a)(b)", "has 2 groups.*e.g.")],
)
def test_pattern_without_exactly_one_group_is_refused(pattern, words):
    with pytest.raises(DataError, match=words):
        PatientsByPattern(pattern)


def test_paths_that_do_not_match_are_listed(tmp_path):
    records = [{"image": tmp_path / name} for name in ("a/7_1.png", "a/x.png", "a/_1.png")]
    with pytest.raises(DataError, match=r"does not match 2 of 3 images:\n  a/x\.png\n  a/_1\.png"):
        PatientsByPattern("([0-9]*)_[0-9]+").assign(records, tmp_path)
    PatientsByPattern("([0-9]+)_[0-9]+").assign(records[:1], tmp_path)
    assert records[0]["patient"] == "7"
