"""Reads single DICOM images as a viewer shows them: rescaled, windowed, and inverted for MONOCHROME1."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ImageFile

from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.data.reading.size_limit import refuse_large
from medfusion_monai.data.reading.value_range import ValueRange

if TYPE_CHECKING:
    from pydicom import Dataset

# Defined terms of Modality (0008,0060): DICOM PS3.3 C.7.3.1.1.1, with retired terms and two unofficial ones.
PROJECTIONS = ("CR", "DX", "DR", "DF", "DS", "IO", "MG", "PX", "RF", "RG", "XA")
PHOTOGRAPHS = ("DMS", "DM", "ES", "FA", "FS", "GM", "OP", "SM", "XC")
UNSPECIFIC = ("HC", "OT", "SC")
DEFAULT_MODALITIES = (*PROJECTIONS, *PHOTOGRAPHS, *UNSPECIFIC)
FIRST_ELEMENTS = {
    0x0002: (0x00, 0x01, 0x02, 0x03, 0x10),
    0x0008: (0x00, 0x01, 0x05, 0x08, 0x12, 0x13, 0x14, 0x16, 0x18),
}

# pydicom's warnings on odd header values quote them.
warnings.filterwarnings("ignore", module="pydicom")


def check_modalities(modalities: Sequence[str] | None) -> None:
    """Raise a ValueError unless ``modalities`` is None or a list of values of DICOM's Modality."""
    if modalities is None:
        return
    is_list = isinstance(modalities, Sequence) and not isinstance(modalities, str)
    if not is_list or not modalities or not all(isinstance(name, str) and name for name in modalities):
        raise ValueError(
            f"modalities are {modalities!r}: pass a list of values of DICOM's Modality such as ['CR', 'DX'], "
            "or None for all projections and photographs."
        )


def looks_like_dicom(head: bytes) -> bool:
    """Return whether a file's first 132 bytes are those of a DICOM file, with or without preamble and prefix."""
    if head[128:132] == b"DICM":
        return True
    orders = ("little", "big")
    pairs = [(int.from_bytes(head[:2], order), int.from_bytes(head[2:4], order)) for order in orders]  # type: ignore[arg-type]
    return len(head) >= 132 and any(element in FIRST_ELEMENTS.get(group, ()) for group, element in pairs)


def read_dicom(
    path: Path, modalities: Sequence[str] | None = None, value_range: ValueRange | None = None
) -> np.ndarray:
    """Read the image of a DICOM file as a viewer shows it first.

    Gray: the modality table or rescale slope and intercept, then the first VOI table, else the first window, then the
    inversion for MONOCHROME1. Without table and window, the lowest value of the image becomes 0 and the highest 1.
    Padding pixels are excluded from this and become 0. Colour: palettes and YBR become RGB, and the range is that of
    the stored bits. Presentation LUT Shape, overlays and colour profiles are not applied.

    Args:
        path: the file, in any transfer syntax with a decoder in pydicom.
        modalities: accepted values of Modality; None accepts :data:`DEFAULT_MODALITIES`. A file without Modality is
            always accepted.
        value_range: values after rescaling that become 0 and 1, instead of table and window.

    Returns:
        float32 of shape (C, H, W) in [0, 1], one or three channels.

    Raises:
        DataError: for another Modality, several frames, missing pixels, a missing decoder, and a damaged file. The
            message quotes no header values except those that describe the pixels.
    """
    from pydicom import uid  # imported on first use, since other formats do not need pydicom

    from medfusion_monai.data.reading.dicom_decoding import one_line, read_header, stored_values
    from medfusion_monai.data.reading.dicom_display import shown

    header = read_header(path)
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # other programs may have set it; truncated images must raise
    try:
        _refuse_other_modality(path, header, modalities)
        _refuse_other_than_one_image(path, header)
        refuse_large(path, header.Rows, header.Columns)
        _refuse_other_length(path, header)
        pixels = shown(stored_values(path, header), header, value_range)
    except DataError:
        raise
    except Exception as error:  # headers, decoders and tables raise anything
        syntax = uid.UID(header.file_meta.get("TransferSyntaxUID", ""))
        advice = "Fetch the file again."
        if syntax == uid.JPEGExtended12Bit:
            advice = "12-bit lossy JPEG needs `pip install pylibjpeg pylibjpeg-libjpeg`."
        raise DataError(
            f"{path}: is a DICOM file that cannot be decoded ({syntax.name or 'unknown compression'}), damaged or "
            f"unusual: {one_line(error)}. {advice}"
        ) from error
    if not np.isfinite(pixels).all():
        raise DataError(f"{path}: is a DICOM file whose rescaled values are not finite. Correct its header.")
    return pixels


def _refuse_other_modality(path: Path, header: Dataset, modalities: Sequence[str] | None) -> None:
    modality = header.get("Modality")
    if not modality or modality in (DEFAULT_MODALITIES if modalities is None else modalities):
        return
    accepted = "projections and photographs" if modalities is None else ", ".join(modalities)
    raise DataError(
        f"{path}: is a DICOM file of Modality {modality}; accepted are {accepted}. Leave it out, or add {modality} to "
        "--modalities (the bundle's dicom_modalities)."
    )


def _refuse_other_than_one_image(path: Path, header: Dataset) -> None:
    if "PixelData" not in header:
        kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")  # the latter of a DICOMDIR
        raise DataError(
            f"{path}: is a DICOM file without pixel data ({kind.name if kind else 'no SOP class'}), or truncated. "
            "Leave it out, or fetch it again."
        )
    _refuse_shifted_bits(path, header)
    frames = int(header.get("NumberOfFrames") or 1)
    if frames != 1:
        raise DataError(f"{path}: is a DICOM file with {frames} frames. Write one image per file.")
    photometric = header.PhotometricInterpretation
    if photometric not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB") and not photometric.startswith("YBR_"):
        raise DataError(f"{path}: is a DICOM file in {photometric}, which is not supported. Convert it to PNG.")
    samples = 1 if photometric in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR") else 3
    if header.SamplesPerPixel != samples:
        raise DataError(
            f"{path}: is a DICOM file in {photometric} with {header.SamplesPerPixel} samples per pixel instead of "
            f"{samples}. Correct its header, or write one image per file."
        )


def _refuse_other_length(path: Path, header: Dataset) -> None:
    """Raise if there are more pixels than the header describes; decoders raise for fewer."""
    data, syntax = header.PixelData, header.file_meta.get("TransferSyntaxUID")
    if syntax is not None and syntax.is_encapsulated:
        frames = int.from_bytes(data[4:8], "little") // 4  # in the table of their offsets, which may be empty
        if frames > 1:
            raise DataError(f"{path}: is a DICOM file with {frames} compressed frames. Write one image per file.")
        return
    samples = 2 if header.PhotometricInterpretation == "YBR_FULL_422" else header.SamplesPerPixel
    expected = -(-header.Rows * header.Columns * samples * header.BitsAllocated // 8)
    row = expected // max(1, header.Rows)
    if len(data) > expected + max(1, row) or any(data[expected:]):  # up to a row of zeros is padding
        raise DataError(
            f"{path}: is a DICOM file with {len(data)} bytes of pixel data, but {header.Rows} rows and "
            f"{header.Columns} columns of {samples} x {header.BitsAllocated} bits take {expected}. Correct its header, "
            "or write one image per file."
        )


def _refuse_shifted_bits(path: Path, header: Dataset) -> None:
    """Raise for native values that are not in the lowest bits: decoders would cut off their highest ones."""
    syntax = header.file_meta.get("TransferSyntaxUID")
    is_native = syntax is None or not syntax.is_encapsulated
    high_bit, bits = header.get("HighBit"), header.get("BitsStored")
    if is_native and high_bit is not None and bits is not None and high_bit > bits - 1:
        raise DataError(
            f"{path}: is a DICOM file with HighBit {high_bit} and BitsStored {bits}, but HighBit must be {bits - 1}: "
            "its values are ambiguous. Correct its header."
        )
