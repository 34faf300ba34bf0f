"""What the DICOM file of an edited image may keep of its source, where a run is asked to: patient, study and side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.data.reading.dicom import looks_like_dicom
from medfusion_monai.sampling.dicom_values import code, item

PATIENT = ("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex")
NEEDED = ("PatientID", "StudyInstanceUID", "SOPClassUID", "SOPInstanceUID")
STUDY = ("StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "StudyDescription")


def patient_of(path: str | Path) -> dict[str, Any]:
    """Return patient, study, reference, side, orientation and Burned In Annotation of a DICOM file, by keyword.

    Raises:
        DataError: for a file that is not DICOM, or that names no patient or study.
    """
    from pydicom import dcmread

    with open(path, "rb") as file:
        is_dicom = looks_like_dicom(file.read(132))
    if not is_dicom:
        raise DataError(f"{path}: is not a DICOM file, and has no patient to keep. Leave out keep_patient.")
    header = dcmread(path, stop_before_pixels=True, force=True)  # some lack the preamble
    missing = [name for name in NEEDED if not header.get(name)]
    if missing:
        raise DataError(f"{path}: has no {' and no '.join(missing)} to keep. Leave out keep_patient.")
    kept = {name: header.get(name, "") for name in (*PATIENT, *STUDY)}
    source = item(ReferencedSOPClassUID=header.SOPClassUID, ReferencedSOPInstanceUID=header.SOPInstanceUID)
    source.PurposeOfReferenceCodeSequence = [code("121322", "DCM", "Source image for image processing operation")]
    side = "ImageLaterality" if header.get("ImageLaterality") else "Laterality"  # a file has one of them
    stated = {
        name: header[name].value for name in ("BurnedInAnnotation", "PatientOrientation", side) if header.get(name)
    }
    return {**kept, "SourceImageSequence": [source], **stated}
