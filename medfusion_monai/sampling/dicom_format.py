"""Encodes sampled images as DICOM files that say, in every way that DICOM offers, that they are synthetic.

The same class, seed, sampler and weights give the same bytes: identifiers are UUIDs under 2.25 (PS3.5, B.2) from a hash
of them, and there are no dates. All images of one sampler and weights are one study of one patient who does not exist,
and those of a class one series.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import medfusion_monai

if TYPE_CHECKING:
    from pydicom import Dataset

Note = Mapping[str, Any]

MAKER = "medfusion_monai"
OF_AN_IMAGE = ("file", "label", "class_name", "seed", "synthetic", "generator")
"""Entries of a note that differ between the images of a run; the others identify its study."""
SYNTHETIC_DATA = 0x0008001C
SAMPLER = ("sampler", "num_inference_steps", "guidance_scale")
"""Entries of a note that Image Comments repeat."""
IMPLEMENTATION = "2.25.237415604105913480290126283093425613312"
"""Of this encoder, a UUID drawn once."""


def secondary_capture(image: Dataset) -> None:
    """Complete a Secondary Capture image (PS3.3, A.8.1)."""
    image.Modality, image.ConversionType = "OT", "SYN"
    image.PatientOrientation, image.Laterality = "", ""


def digital_x_ray(image: Dataset) -> None:
    """Complete a Digital X-Ray image for presentation (PS3.3, A.26), of the chest seen from the front.

    Spacing, which the class requires, is 1 mm per pixel: synthetic images have none of their own.
    """
    image.Modality, image.PresentationIntentType = "DX", "FOR PRESENTATION"
    image.ImageType = ["DERIVED", "SECONDARY", ""]
    image.BodyPartExamined, image.ViewPosition, image.ImageLaterality = "CHEST", "", "U"
    image.PatientOrientation = ["L", "F"]
    image.AnatomicRegionSequence = [_code("43799004", "SCT", "Thorax")]
    image.AcquisitionContextSequence = []
    image.PositionerType, image.DetectorType = "", "DIRECT"
    image.ImagerPixelSpacing = [1.0, 1.0]
    image.PixelIntensityRelationship, image.PixelIntensityRelationshipSign = "LIN", 1
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = "0", "1", "US"
    image.PresentationLUTShape, image.LossyImageCompression = "IDENTITY", "00"


def ophthalmic_photography(image: Dataset) -> None:
    """Complete an Ophthalmic Photography 8 Bit image (PS3.3, A.41).

    The class requires values that a synthetic photograph does not have: "both" (B) stands for the side of the eye, 1 mm
    per pixel for the spacing, and the first of January 1970 for the time of the content, so that the bytes repeat.
    """
    image.Modality, image.ImageLaterality, image.PatientOrientation = "OP", "B", ""
    image.ImageType = ["DERIVED", "PRIMARY", "SYNTHETIC"]  # the class forbids SECONDARY
    image.ContentDate, image.ContentTime, image.SourceImageSequence = "19700101", "000000", []
    image.NumberOfFrames, image.FrameTime, image.FrameIncrementPointer = 1, "0", 0x00181063
    image.AnatomicRegionSequence = [_code("5665001", "SCT", "Retina")]
    image.AcquisitionContextSequence = []
    image.AcquisitionDeviceTypeCodeSequence = [_code("409898007", "SCT", "Fundus Camera")]
    image.IlluminationTypeCodeSequence, image.LightPathFilterTypeStackCodeSequence = [], []
    image.ImagePathFilterTypeStackCodeSequence, image.LensesCodeSequence = [], []
    image.DetectorType, image.PixelSpacing = "", [1.0, 1.0]
    image.EmmetropicMagnification, image.IntraOcularPressure = None, None
    image.HorizontalFieldOfView, image.RefractiveStateSequence = None, []
    image.PatientEyeMovementCommanded, image.PupilDilated, image.LossyImageCompression = "", "", "00"
    image.SynchronizationTrigger, image.AcquisitionTimeSynchronized = "NO TRIGGER", "N"
    image.SynchronizationFrameOfReferenceUID = "1.2.840.10008.15.1.1"


def microscopy(image: Dataset) -> None:
    """Complete a VL Microscopic image (PS3.3, A.32.2) of a specimen of the colon that does not exist."""
    image.Modality, image.LossyImageCompression, image.PatientOrientation = "GM", "00", ""
    image.AcquisitionContextSequence = []
    image.AnatomicRegionSequence = [_code("71854001", "SCT", "Colon")]
    image.ContainerIdentifier, image.IssuerOfTheContainerIdentifierSequence = "SYNTHETIC", []
    image.ContainerTypeCodeSequence = [_code("433466003", "SCT", "Microscope slide")]
    specimen = _item(SpecimenIdentifier="SYNTHETIC", SpecimenUID=_uid("specimen", image.SOPInstanceUID))
    specimen.IssuerOfTheSpecimenIdentifierSequence, specimen.SpecimenPreparationSequence = [], []
    image.SpecimenDescriptionSequence = [specimen]


class DicomKind(NamedTuple):
    """A kind of DICOM image, with its encoder for ``ImageFormat``.

    Args:
        sop_class: UID of its storage class.
        title: of the class.
        complete: adds what only this class has.
        channels: numbers of channels that the class allows.
    """

    sop_class: str
    title: str
    complete: Callable[[Any], None]
    channels: tuple[int, ...] = (1, 3)

    def encode(self, image: np.ndarray, note: Note) -> bytes:
        """Encode an image (C, H, W) in [0, 1], gray or RGB, with 8 bits; a note says how it was made."""
        import pydicom  # on first use: other formats do not need it
        from pydicom.dataset import FileMetaDataset
        from pydicom.uid import UID, ExplicitVRLittleEndian

        from medfusion_monai.data.reading.dicom_decoding import IS_PYDICOM_2

        run = {name: value for name, value in note.items() if name not in OF_AN_IMAGE}
        file = pydicom.Dataset()
        file.SOPClassUID, file.SOPInstanceUID = self.sop_class, _uid("image", _text(note))
        _add_origin(file, note, run)
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
    "dicom_dx": DicomKind("1.2.840.10008.5.1.4.1.1.1.1", "DICOM, Digital X-Ray", digital_x_ray, (1,)),
    "dicom_op": DicomKind(
        "1.2.840.10008.5.1.4.1.1.77.1.5.1", "DICOM, Ophthalmic Photography", ophthalmic_photography, (3,)
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


def _add_origin(file: Dataset, note: Note, run: Note) -> None:
    """Add everything about patient, study, series, equipment and how the image was made."""
    study, label, seed = _uid("study", _text(run)), int(note.get("label", 0)), note.get("seed", "unknown")
    name = str(note.get("class_name", ""))
    sampler = ", ".join(f"{key} {note[key]}" for key in SAMPLER if key in note)
    weights = str(note.get("weights_sha256", "unknown"))
    file.SpecificCharacterSet = "ISO_IR 192"
    file.add_new(SYNTHETIC_DATA, "CS", "YES")  # pydicom 2 does not know its name
    file.ImageType, file.BurnedInAnnotation = ["DERIVED", "SECONDARY"], "NO"
    file.PatientName, file.PatientID = "SYNTHETIC^NO REAL PATIENT", f"SYNTHETIC-{_digest(study)[:12].upper()}"
    file.IssuerOfPatientID, file.PatientBirthDate, file.PatientSex = MAKER, "", ""
    file.PatientComments = "Synthetic: made by a generative model, shows no real patient"
    file.StudyInstanceUID, file.StudyID, file.AccessionNumber = study, _digest(study)[:12].upper(), ""
    file.StudyDate, file.StudyTime, file.ReferringPhysicianName = "", "", ""
    file.StudyDescription = "Synthetic images"
    file.SeriesInstanceUID, file.SeriesNumber = _uid("series", study, str(label)), label + 1
    file.SeriesDescription = f"Synthetic, {name}"[:64]
    file.InstanceNumber = _number_of(str(note.get("file", "")))
    file.Manufacturer, file.ManufacturerModelName = MAKER, "Medfusion"
    file.DeviceSerialNumber = weights[:16]
    file.SoftwareVersions = str(note.get("version", medfusion_monai.__version__))
    file.ImageComments = f"Synthetic: class {label} {name}, seed {seed}, {sampler}, weights {weights}"[:10240]
    file.DerivationDescription = f"Sampled from noise by a latent diffusion model, weights SHA-256 {weights}"[:1024]
    maker = _item(
        Manufacturer=MAKER,
        ManufacturerModelName="Medfusion",
        DeviceSerialNumber=weights[:16],
        SoftwareVersions=file.SoftwareVersions,
        ContributionDescription=f"Synthesized the image; weights SHA-256 {weights}",
    )
    maker.PurposeOfReferenceCodeSequence = [_code("109100", "DCM", "Synthesizing Equipment")]
    file.ContributingEquipmentSequence = [maker]


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


def _number_of(file: str) -> int:
    """Return the number at the end of a file's name, counted from 1."""
    digits = "".join(character if character.isdigit() else " " for character in Path(file).name.split(".")[0]).split()
    return int(digits[-1]) + 1 if digits else 1


def _item(**values: Any) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    return _item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _text(note: Note) -> str:
    return repr(sorted((name, str(value)) for name, value in note.items()))


def _digest(*words: str) -> str:
    return hashlib.sha256(repr((MAKER, *words)).encode()).hexdigest()


def _uid(*words: str) -> str:
    """Return a UID of 2.25 and a UUID of version 8 (RFC 9562) from a hash of words."""
    value = int(_digest(*words)[:32], 16)
    value = value & ~(0xF << 76) | 0x8 << 76  # version
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant
    return f"2.25.{value}"
