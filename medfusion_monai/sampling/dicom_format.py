"""Encodes sampled and edited images as DICOM files that say, in every way that DICOM offers, that they are synthetic.

The same image gives the same bytes: identifiers are from a hash of label, seed, weights and all settings of the run,
and there are no dates. All images of a run are one study of one patient who does not exist, and those of a class one
series; what differs for edited images is in ``dicom_origin``.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from medfusion_monai.sampling.dicom_origin import Note, add_origin, is_edited
from medfusion_monai.sampling.dicom_values import code, item, uid

if TYPE_CHECKING:
    from pydicom import Dataset

IMPLEMENTATION = "2.25.195297779664681296205076428652911290975"
"""Of this encoder, a UUID drawn once."""


def secondary_capture(image: Dataset) -> None:
    """Complete a Secondary Capture image (PS3.3, A.8.1)."""
    image.Modality, image.ConversionType = "OT", "SYN"
    image.PatientOrientation = image.get("PatientOrientation", "")
    if "ImageLaterality" not in image:
        image.Laterality = image.get("Laterality", "")


def digital_x_ray(image: Dataset) -> None:
    """Complete a Digital X-Ray image for presentation (PS3.3, A.26), of the chest seen from the front.

    Spacing, which the class requires, is 1 mm per pixel: synthetic images have none of their own. In the study of a
    patient, where viewers measure by it, it is that of the source after the resize (``edit_patient``), never invented.
    """
    image.Modality, image.PresentationIntentType = "DX", "FOR PRESENTATION"
    image.ImageType = ["DERIVED", "SECONDARY", ""]
    image.BodyPartExamined, image.ViewPosition = "CHEST", ""
    image.PatientOrientation = image.get("PatientOrientation", ["L", "F"])
    _state_side(image, "U")
    image.AnatomicRegionSequence = [code("43799004", "SCT", "Thorax")]
    image.AcquisitionContextSequence = []
    image.PositionerType, image.DetectorType = "", "DIRECT"
    if not _names_patient(image):
        image.ImagerPixelSpacing = [1.0, 1.0]
    image.PixelIntensityRelationship, image.PixelIntensityRelationshipSign = "LIN", -1  # bright where dense
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = "0", "1", "US"
    image.PresentationLUTShape, image.LossyImageCompression = "IDENTITY", "00"
    _state_annotation(image)


def ophthalmic_photography(image: Dataset) -> None:
    """Complete an Ophthalmic Photography 8 Bit image (PS3.3, A.41).

    The class requires values that a synthetic photograph does not have: "both" (B) stands for the side of the eye, 1 mm
    per pixel for the spacing, and the first of January 1970 for the time of the content, so that the bytes repeat. In
    the study of a patient, side and time are those of the source and the study as far as they are known, and the
    spacing is that of the source after the resize.
    """
    image.Modality, image.PatientOrientation = "OP", image.get("PatientOrientation", "")
    _state_side(image, "B")
    image.ImageType = ["DERIVED", "PRIMARY", _word(image)]  # the class forbids SECONDARY
    image.ContentDate, image.ContentTime = image.StudyDate or "19700101", image.StudyTime or "000000"
    image.SourceImageSequence = image.get("SourceImageSequence", [])
    _state_annotation(image)
    image.NumberOfFrames, image.FrameTime, image.FrameIncrementPointer = 1, "0", 0x00181063
    image.AnatomicRegionSequence = [code("5665001", "SCT", "Retina")]
    image.AcquisitionContextSequence = []
    image.AcquisitionDeviceTypeCodeSequence = [code("409898007", "SCT", "Fundus Camera")]
    image.IlluminationTypeCodeSequence, image.LightPathFilterTypeStackCodeSequence = [], []
    image.ImagePathFilterTypeStackCodeSequence, image.LensesCodeSequence = [], []
    image.DetectorType = ""
    if not _names_patient(image):
        image.PixelSpacing = [1.0, 1.0]
    image.EmmetropicMagnification, image.IntraOcularPressure = None, None
    image.HorizontalFieldOfView, image.RefractiveStateSequence = None, []
    image.PatientEyeMovementCommanded, image.PupilDilated, image.LossyImageCompression = "", "", "00"
    image.SynchronizationTrigger, image.AcquisitionTimeSynchronized = "NO TRIGGER", "N"
    image.SynchronizationFrameOfReferenceUID = "1.2.840.10008.15.1.1"


def microscopy(image: Dataset) -> None:
    """Complete a VL Microscopic image (PS3.3, A.32.2) of a specimen of the colon, which no edit or sample names."""
    image.Modality, image.LossyImageCompression = "GM", "00"
    image.PatientOrientation = image.get("PatientOrientation", "")
    image.AcquisitionContextSequence = []
    image.AnatomicRegionSequence = [code("71854001", "SCT", "Colon")]
    image.ContainerIdentifier, image.IssuerOfTheContainerIdentifierSequence = _word(image), []
    image.ContainerTypeCodeSequence = [code("433466003", "SCT", "Microscope slide")]
    specimen = item(SpecimenIdentifier=_word(image), SpecimenUID=uid("specimen", image.SOPInstanceUID))
    specimen.IssuerOfTheSpecimenIdentifierSequence, specimen.SpecimenPreparationSequence = [], []
    image.SpecimenDescriptionSequence = [specimen]


def _word(image: Dataset) -> str:
    return "EDITED" if is_edited(image) else "SYNTHETIC"


def _names_patient(image: Dataset) -> bool:
    return image.get("PatientIdentityRemoved") == "NO"


def _state_side(image: Dataset, otherwise: str) -> None:
    """Add Image Laterality, which replaces Laterality (PS3.3, C.7.3.1), by the source as far as it is known."""
    image.ImageLaterality = image.get("ImageLaterality") or image.get("Laterality") or otherwise
    image.pop("Laterality", None)


def _state_annotation(image: Dataset) -> None:
    """Add Burned In Annotation where the class requires it: nobody knows whether an edited image shows a name."""
    image.BurnedInAnnotation = image.get("BurnedInAnnotation", "YES")


class DicomKind(NamedTuple):
    """A kind of DICOM image, with its encoder for ``ImageFormat``.

    Args:
        sop_class: UID of its storage class.
        title: of the class.
        complete: adds what only this class has.
        channels: numbers of channels that the class allows.
        spacing: keyword of the distance between pixels, where the class requires one.
    """

    sop_class: str
    title: str
    complete: Callable[[Any], None]
    channels: tuple[int, ...] = (1, 3)
    spacing: str = ""

    def encode(self, image: np.ndarray, note: Note) -> bytes:
        """Encode an image (C, H, W) in [0, 1], gray or RGB, with 8 bits; a note says how it was made."""
        import pydicom  # on first use: other formats do not need it
        from pydicom.dataset import FileMetaDataset
        from pydicom.uid import UID, ExplicitVRLittleEndian

        from medfusion_monai.data.reading.dicom_decoding import IS_PYDICOM_2

        file = pydicom.Dataset()
        file.SOPClassUID = self.sop_class
        add_origin(file, note)
        _add_pixels(file, image)
        self.complete(file)
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(self.sop_class), UID(file.SOPInstanceUID)
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.ImplementationClassUID, meta.ImplementationVersionName = UID(IMPLEMENTATION), "MEDFUSION_MONAI"
        file.file_meta = meta
        content = io.BytesIO()
        if IS_PYDICOM_2:
            file.is_little_endian, file.is_implicit_VR = True, False
            file.save_as(content, write_like_original=False)
        else:
            file.save_as(content, enforce_file_format=True)
        return content.getvalue()


KINDS = {
    "dicom": DicomKind("1.2.840.10008.5.1.4.1.1.7", "DICOM, Secondary Capture", secondary_capture),
    "dicom_dx": DicomKind(
        "1.2.840.10008.5.1.4.1.1.1.1", "DICOM, Digital X-Ray", digital_x_ray, (1,), "ImagerPixelSpacing"
    ),
    "dicom_op": DicomKind(
        "1.2.840.10008.5.1.4.1.1.77.1.5.1",
        "DICOM, Ophthalmic Photography",
        ophthalmic_photography,
        (3,),
        "PixelSpacing",
    ),
    "dicom_gm": DicomKind("1.2.840.10008.5.1.4.1.1.77.1.2", "DICOM, VL Microscopic", microscopy, (3,)),
}
"""By the names that ``output_format`` takes."""


def dicom_is_whole(path: Path) -> bool:
    """Return whether a file has all values of its pixels, which are its last element."""
    from pydicom import dcmread

    try:
        file = dcmread(path)
        return len(file.PixelData) == file.Rows * file.Columns * file.SamplesPerPixel + file.Rows * file.Columns % 2
    except Exception:  # a damaged header raises anything
        return False


def _add_pixels(file: Dataset, image: np.ndarray) -> None:
    values = np.rint(image.clip(0.0, 1.0) * 255).astype(np.uint8)
    gray = len(values) == 1
    file.SamplesPerPixel, file.PhotometricInterpretation = (1, "MONOCHROME2") if gray else (3, "RGB")
    if gray:
        file.WindowCenter, file.WindowWidth = "128", "256"  # else viewers stretch each image to its own range
    else:
        file.PlanarConfiguration = 0
    file.Rows, file.Columns = values.shape[1:]
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 8, 8, 7, 0
    pixels = (values[0] if gray else values.transpose(1, 2, 0)).tobytes()
    file.PixelData = pixels + b"\0" * (len(pixels) % 2)
    file["PixelData"].VR = "OB"
