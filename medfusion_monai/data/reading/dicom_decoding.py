"""Reads headers and stored values of DICOM files; only this module depends on the version of pydicom (2.4 or 3).

It imports pydicom, and is itself imported on reading the first DICOM file.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from PIL.JpegImagePlugin import JpegImageFile
from pydicom import Dataset, dcmread, uid
from pydicom.datadict import DicomDictionary

from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.data.reading.jpeg_files import missing_part

IS_PYDICOM_2 = find_spec("pydicom.pixels") is None
if IS_PYDICOM_2:
    from pydicom.encaps import defragment_data
    from pydicom.pixel_data_handlers.util import apply_color_lut, apply_modality_lut, convert_color_space
else:
    from pydicom.encaps import get_frame
    from pydicom.pixels import apply_color_lut, apply_modality_lut, convert_color_space, get_decoder, pixel_array

__all__ = ["apply_color_lut", "apply_modality_lut", "one_line", "read_header", "stored_values"]

EXTRA = "pip install pylibjpeg pylibjpeg-openjpeg python-gdcm"
YBR = ("YBR_FULL", "YBR_FULL_422")
# Only the elements of the pixels are parsed: no message can then quote the patient's data.
TAGS = [tag for tag in DicomDictionary if tag >> 16 == 0x0028]
TAGS += [0x00080016, 0x00080060, 0x7FE00001, 0x7FE00002, 0x7FE00010]

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its messages quote header values; importing it sets the level


def read_header(path: Path) -> Dataset:
    """Read the elements that describe the pixels of a file, and the pixels without decoding them.

    Raises:
        DataError: for a truncated or damaged file.
    """
    try:
        with open(path, "rb") as file:
            has_prefix = file.read(132)[128:] == b"DICM"
        header = dcmread(path, force=not has_prefix, specific_tags=TAGS)
        if "TransferSyntaxUID" not in header.file_meta and not header["PixelData"].is_undefined_length:
            header.file_meta.TransferSyntaxUID = _native_syntax(header)
    except Exception as error:  # pydicom raises anything from KeyError to zlib.error
        kind = "is a DICOM file" if has_prefix else "looks like a DICOM file without its preamble"
        raise DataError(
            f"{path}: {kind} that cannot be read, truncated or damaged: {one_line(error)}. Fetch the file again."
        ) from error
    return header


def stored_values(path: Path, header: Dataset) -> np.ndarray:
    """Decode the stored values of one image, (H, W) or (H, W, 3); YBR becomes RGB.

    Raises:
        DataError: if the transfer syntax is unknown or has no decoder. Decoders raise any other error.
    """
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise DataError(f"{path}: is a DICOM file without a transfer syntax for its pixels. Fetch it again.")
    if syntax.is_encapsulated and not has_decoder(syntax):
        raise DataError(
            f"{path}: is a DICOM file compressed as {syntax.name} ({syntax}), and no decoder for it is installed. Use: "
            f"{EXTRA}"
        )
    if syntax == uid.JPEGBaseline8Bit:
        return _baseline_jpeg(header)
    return _pixels_of_pydicom_2(header) if IS_PYDICOM_2 else pixel_array(header, allow_excess_frames=False)


def has_decoder(syntax: uid.UID) -> bool:
    """Return whether a decoder for a transfer syntax is installed."""
    if not IS_PYDICOM_2:
        return get_decoder(syntax).is_available
    handlers = pydicom.config.pixel_data_handlers
    return any(handler.supports_transfer_syntax(syntax) and handler.is_available() for handler in handlers)


def one_line(error: Exception) -> str:
    """Return the message of an error as the end of a sentence."""
    return " ".join(str(error).split())[:300].rstrip(".")


def _native_syntax(header: Dataset) -> uid.UID:
    """Return the transfer syntax of uncompressed pixels, which is that of the rest of the file."""
    encoding = (header.read_implicit_vr, header.read_little_endian) if IS_PYDICOM_2 else header.original_encoding
    implicit, little = encoding
    explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
    return uid.ImplicitVRLittleEndian if implicit else explicit


def _baseline_jpeg(header: Dataset) -> np.ndarray:
    """Decode with Pillow even if the extra is installed, since the pixels must not depend on it.

    Not with pydicom's use of Pillow: 2.4 fails on RGB, and 3 converts to RGB twice if an Adobe marker declares YBR.
    """
    data = header.PixelData
    frame = defragment_data(data) if IS_PYDICOM_2 else get_frame(data, 0, number_of_frames=1)
    image = JpegImageFile(BytesIO(frame))
    adobe = image.info.get("adobe_transform")
    says_ybr = "jfif" in image.info or adobe == 1
    says_rgb = bytes(component[0] for component in image.layer).upper() == b"RGB"
    samples = header.SamplesPerPixel
    if image.size != (header.Columns, header.Rows):  # before decoding
        raise ValueError(f"the header does not match a JPEG of {image.height}x{image.width} pixels")
    if samples == 3 and not says_rgb and (says_ybr or adobe is None):
        image.draft("YCbCr", image.size)  # no conversion: Pillow would interpret any three components as YBR
    stored = np.array(image)
    missing = missing_part(frame, image)
    if missing:
        raise ValueError(f"its JPEG is incomplete: {missing}")
    if header.BitsAllocated != 8 or stored.shape != (header.Rows, header.Columns, samples)[: 2 + (samples > 1)]:
        raise ValueError(f"the header does not match a JPEG of shape {stored.shape} and 8 bits")
    is_ybr = samples == 3 and not says_rgb and (says_ybr or header.PhotometricInterpretation in YBR)
    return convert_color_space(stored, "YBR_FULL", "RGB") if is_ybr else stored


def _pixels_of_pydicom_2(header: Dataset) -> np.ndarray:
    """Decode, and as pydicom 3 does ignore unused bits and convert YBR to RGB."""
    syntax = header.file_meta.TransferSyntaxUID
    is_12_bit = syntax == uid.JPEGExtended12Bit and header.BitsStored != 8
    header.convert_pixel_data("pylibjpeg" if is_12_bit else "")  # other decoders read 12 bits as 8
    stored = header.pixel_array
    unused = header.BitsAllocated - header.BitsStored
    if unused > 0 and syntax not in uid.JPEG2000TransferSyntaxes:
        stored = stored << unused >> unused
    if header.PhotometricInterpretation in YBR:
        stored = convert_color_space(stored, "YBR_FULL", "RGB")
    return stored
