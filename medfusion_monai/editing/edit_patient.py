"""What the DICOM file of an edited image may keep of its source, where a run is asked to.

That is patient, study, side and, in formats that require it, the distance between pixels.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.data.reading.dicom import looks_like_dicom
from medfusion_monai.data.reading.transforms import enlargement_of
from medfusion_monai.sampling.dicom_format import KINDS
from medfusion_monai.sampling.dicom_values import code, item

if TYPE_CHECKING:
    from pydicom import Dataset

PATIENT = ("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex")
NEEDED = ("PatientID", "StudyInstanceUID", "SOPClassUID", "SOPInstanceUID")
STUDY = ("StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "StudyDescription")


def patient_of(path: str | Path, output_format: str = "dicom", preprocessing: Any = None) -> dict[str, Any]:
    """Return patient, study, reference, side, orientation and Burned In Annotation of a DICOM file, by keyword.

    Args:
        path: of the file.
        output_format: of the edited image; one that requires the distance between pixels has that of the file, in mm,
            after the resize.
        preprocessing: reads and resizes the image (``read_and_resize``).

    Raises:
        DataError: for a file that is not DICOM, that names no patient or study, or that does not state a distance
            between pixels that is required; and where a preprocessing of another kind leaves it unknown.
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
    spacing = KINDS[output_format].spacing
    if spacing:
        stated[spacing] = _spacing(path, header, spacing, output_format, preprocessing)
    return {**kept, "SourceImageSequence": [source], **stated}


def _spacing(path: str | Path, header: Dataset, keyword: str, output_format: str, preprocessing: Any) -> list[str]:
    """Return the distance between rows and between columns of the resized image."""
    advice = f"which {output_format} requires. Use output_format dicom, which does not, or leave out keep_patient."
    try:
        sides = [float(side) for side in header.get(keyword) or ()]
    except (TypeError, ValueError):  # one number, or none
        sides = []
    if len(sides) != 2 or not all(0.0 < side < math.inf for side in sides):
        raise DataError(f"{path}: states no {keyword}, {advice}")
    enlarged = enlargement_of(preprocessing, (header.Rows, header.Columns))
    if enlarged is None:
        raise DataError(f"{path}: its {keyword} is unknown after a preprocessing of another kind, {advice}")
    return [f"{side / factor:.10g}" for side, factor in zip(sides, enlarged, strict=True)]  # DS holds 16 characters
