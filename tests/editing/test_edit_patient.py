"""What is kept of the patient of a DICOM file."""

import pytest
from dicom_files import save_dicom, save_without_preamble
from pydicom import Dataset

from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.editing.edit_patient import patient_of


@pytest.fixture
def scan():
    """The header of a scan, with more of the patient than may be kept."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3.4"
    made.SpecificCharacterSet, made.PatientName, made.PatientID = "ISO_IR 192", "Müller^Anna", "42"
    made.PatientBirthDate, made.PatientSex, made.PatientAddress = "19500102", "F", "Main Street 1"
    made.StudyInstanceUID, made.StudyDate, made.AccessionNumber = "1.2.3", "20240102", "A1"
    made.StudyDescription = "Chest, two views"
    made.ReferringPhysicianName = "House^Gregory"
    return made


def test_patient_study_and_reference_are_kept_and_no_more(scan, tmp_path):
    kept = patient_of(save_dicom(tmp_path / "scan.dcm", scan))
    (source,) = kept.pop("SourceImageSequence")
    assert (source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID) == (scan.SOPClassUID, "1.2.3.4")
    assert {name: str(value) for name, value in kept.items()} == {
        "PatientName": "Müller^Anna",
        "PatientID": "42",
        "IssuerOfPatientID": "",
        "PatientBirthDate": "19500102",
        "PatientSex": "F",
        "StudyInstanceUID": "1.2.3",
        "StudyID": "",
        "StudyDate": "20240102",
        "StudyTime": "",
        "AccessionNumber": "A1",
        "StudyDescription": "Chest, two views",
    }


def test_file_without_a_preamble_and_annotation_are_read(scan, tmp_path):
    scan.BurnedInAnnotation = "NO"
    kept = patient_of(save_without_preamble(tmp_path / "scan", scan, little_endian=True))
    assert (kept["PatientID"], kept["BurnedInAnnotation"]) == ("42", "NO")


def test_side_and_orientation_are_kept_where_they_are_known(scan, tmp_path):
    scan.PatientOrientation, scan.Laterality = ["R", "F"], "L"
    kept = patient_of(save_dicom(tmp_path / "scan.dcm", scan))
    assert (list(kept["PatientOrientation"]), kept["Laterality"]) == (["R", "F"], "L")
    scan.ImageLaterality = "R"
    kept = patient_of(save_dicom(tmp_path / "other.dcm", scan))
    assert (kept["ImageLaterality"], "Laterality" in kept) == ("R", False)


def test_file_that_names_no_patient_is_an_error(scan, tmp_path):
    del scan.PatientID
    scan.StudyInstanceUID = ""
    with pytest.raises(DataError, match="has no PatientID and no StudyInstanceUID to keep. Leave out keep_patient"):
        patient_of(save_dicom(tmp_path / "scan.dcm", scan))


def test_file_of_another_format_is_an_error(tmp_path):
    (tmp_path / "scan.png").write_bytes(b"\x89PNG" + bytes(200))
    with pytest.raises(DataError, match="is not a DICOM file, and has no patient to keep"):
        patient_of(tmp_path / "scan.png")
