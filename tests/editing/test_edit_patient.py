"""What is kept of the patient of a DICOM file."""

import pytest
from dicom_files import save_dicom, save_without_preamble
from monai.transforms import Compose, Zoomd
from pydicom import Dataset

from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.data.reading.transforms import read_and_resize
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


RESIZE = read_and_resize([64, 32])


@pytest.mark.parametrize(
    ("mode", "size", "expected"),
    [
        ("crop", [64, 32], ["0.625", "0.46875"]),  # 200 x 300 becomes 64 x 96, of which 32 columns are kept
        ("pad", [64, 32], ["1.904761905", "1.40625"]),  # becomes 21 x 32
        ("crop", [200, 300], ["0.2", "0.15"]),
    ],
)
def test_spacing_is_that_of_the_source_times_the_resize(scan, mode, size, expected, tmp_path):
    scan.Rows, scan.Columns = 200, 300
    scan.ImagerPixelSpacing = ["0.2", "0.15"]
    kept = patient_of(save_dicom(tmp_path / "scan.dcm", scan), "dicom_dx", read_and_resize(size, 1, mode))
    assert kept["ImagerPixelSpacing"] == expected


@pytest.mark.parametrize(
    ("output_format", "keyword"), [("dicom_dx", "ImagerPixelSpacing"), ("dicom_op", "PixelSpacing")]
)
def test_only_what_the_format_requires_is_kept(scan, output_format, keyword, tmp_path):
    scan.Rows, scan.Columns = 64, 32
    scan.ImagerPixelSpacing, scan.PixelSpacing = ["0.2", "0.2"], ["0.1", "0.1"]
    path = save_dicom(tmp_path / "scan.dcm", scan)
    kept = patient_of(path, output_format, RESIZE)
    assert {name for name in kept if "Spacing" in name} == {keyword}
    assert kept[keyword] == list(map(str, scan[keyword].value))
    assert not any("Spacing" in name for name in patient_of(path, "dicom", RESIZE))


@pytest.mark.parametrize("spacing", [None, "0.2", ["0", "0.2"], ["0.1", "0.2", "0.3"]])
def test_format_that_requires_a_spacing_that_the_source_does_not_state_is_an_error(scan, spacing, tmp_path):
    scan.Rows, scan.Columns = 200, 300
    scan.ImagerPixelSpacing = spacing
    path = save_dicom(tmp_path / "scan.dcm", scan)
    with pytest.raises(
        DataError, match="states no ImagerPixelSpacing, which dicom_dx requires. Use output_format dicom"
    ):
        patient_of(path, "dicom_dx", RESIZE)


def test_spacing_after_a_preprocessing_of_another_kind_is_an_error(scan, tmp_path):
    scan.Rows, scan.Columns = 200, 300
    scan.ImagerPixelSpacing = ["0.2", "0.2"]
    path = save_dicom(tmp_path / "scan.dcm", scan)
    with pytest.raises(DataError, match="ImagerPixelSpacing is unknown after a preprocessing of another kind"):
        patient_of(path, "dicom_dx", Compose([Zoomd("image", 2.0)]))
