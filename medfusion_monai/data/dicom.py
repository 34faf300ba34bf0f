"""Reads single DICOM images as a viewer shows them: rescaled, windowed, inverted where the header says so."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ImageFile
from pydicom import Dataset, dcmread, uid
from pydicom.datadict import DicomDictionary
from pydicom.multival import MultiValue
from pydicom.pixels import apply_color_lut, apply_modality_lut, get_decoder, pixel_array

from medfusion_monai.data.splits import DataError

# Defined terms of Modality (0008,0060): DICOM PS3.3 C.7.3.1.1.1, with retired ones and two that are only in use.
PROJECTIONS = ("CR", "DX", "DR", "DF", "DS", "IO", "MG", "PX", "RF", "RG", "XA")
PHOTOGRAPHS = ("DMS", "DM", "ES", "FA", "FS", "GM", "OP", "SM", "XC")
UNSPECIFIC = ("HC", "OT", "SC")
DEFAULT_MODALITIES = (*PROJECTIONS, *PHOTOGRAPHS, *UNSPECIFIC)

EXTRA = "pip install 'medfusion-monai[dicom]'"
# Only what the pixels need is parsed, so that nothing about the patient is in reach of a message.
TAGS = [tag for tag in DicomDictionary if tag >> 16 == 0x0028]
TAGS += [0x00080016, 0x00080060, 0x7FE00001, 0x7FE00002, 0x7FE00010]
FIRST_ELEMENTS = {
    0x0002: (0x00, 0x01, 0x02, 0x03, 0x10),
    0x0008: (0x00, 0x01, 0x05, 0x08, 0x12, 0x13, 0x14, 0x16, 0x18),
}

# pydicom warns of each odd value in a header and quotes it.
warnings.filterwarnings("ignore", module="pydicom")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


def check_modalities(modalities: Sequence[str] | None) -> None:
    """Raise a ValueError unless ``modalities`` is None or a list of values of DICOM's Modality."""
    if modalities is None:
        return
    is_list = isinstance(modalities, Sequence) and not isinstance(modalities, str)
    if not is_list or not modalities or not all(isinstance(name, str) and name for name in modalities):
        raise ValueError(
            f"modalities are {modalities!r}: give a list of values of DICOM's Modality such as ['CR', 'DX'], "
            "or None for all projections and photographs."
        )


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file's first 132 bytes are those of a DICOM file, or of one that lacks preamble and prefix."""
    if head[128:132] == b"DICM":
        return True
    orders = ("little", "big")
    pairs = [(int.from_bytes(head[:2], order), int.from_bytes(head[2:4], order)) for order in orders]  # type: ignore[arg-type]
    return len(head) >= 132 and any(element in FIRST_ELEMENTS.get(group, ()) for group, element in pairs)


def read_dicom(path: Path, modalities: Sequence[str] | None = None) -> np.ndarray:
    """Read the image of a DICOM file as a viewer shows it first.

    Gray: the modality table or rescale slope and intercept, then the first VOI table, else the first window, then the
    inversion that MONOCHROME1 asks for. Without table and window, the lowest value of this image becomes 0 and its
    highest 1. Pixels of the padding value take no part in that and are 0. Colour: palettes and YBR become RGB, and
    the stored bits are the range. Presentation LUT Shape, overlays and colour profiles are not applied.

    Args:
        path: the file; any transfer syntax for which pydicom finds a decoder.
        modalities: values of Modality that are accepted; None takes :data:`DEFAULT_MODALITIES`. A file without
            Modality is always accepted.

    Returns:
        float32 of shape (C, H, W) in [0, 1], one or three channels.

    Raises:
        DataError: another Modality, several frames, no pixels, no decoder, or damaged. It never quotes the header
            beyond what describes the pixels.
    """
    header = _read_header(path)
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # what another program may have set; half an image is none
    try:
        _refuse_other_modality(path, header, modalities)
        _refuse_other_than_one_image(path, header)
        stored = pixel_array(header, decoding_plugin=_decoder_for(path, header))
        pixels = _shown_gray(stored, header) if stored.ndim == 2 else _shown_colour(stored, header)
    except DataError:
        raise
    except Exception as error:  # headers, decoders and tables raise anything
        syntax = uid.UID(header.file_meta.get("TransferSyntaxUID", ""))
        advice = "Fetch the file again."
        if syntax == uid.JPEGExtended12Bit:
            advice = "12-bit lossy JPEG needs `pip install pylibjpeg pylibjpeg-libjpeg`."
        raise DataError(
            f"{path}: is a DICOM file that cannot be decoded ({syntax.name or 'unknown compression'}), damaged or odd: "
            f"{_one_line(error)}. {advice}"
        ) from error
    if not np.isfinite(pixels).all():
        raise DataError(f"{path}: is a DICOM file whose rescaled values are not finite. Correct its header.")
    return pixels


def _read_header(path: Path) -> Dataset:
    try:
        with open(path, "rb") as file:
            has_prefix = file.read(132)[128:] == b"DICM"
        header = dcmread(path, force=not has_prefix, specific_tags=TAGS)
        if "TransferSyntaxUID" not in header.file_meta and not header["PixelData"].is_undefined_length:
            implicit, little = header.original_encoding
            explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
            header.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    except Exception as error:  # pydicom raises anything from KeyError to zlib.error
        kind = "is a DICOM file" if has_prefix else "looks like a DICOM file without its preamble"
        raise DataError(
            f"{path}: {kind} that cannot be read, truncated or damaged: {_one_line(error)}. Fetch the file again."
        ) from error
    return header


def _refuse_other_modality(path: Path, header: Dataset, modalities: Sequence[str] | None) -> None:
    modality = header.get("Modality")
    if not modality or modality in (DEFAULT_MODALITIES if modalities is None else modalities):
        return
    accepted = "projections and photographs" if modalities is None else ", ".join(modalities)
    raise DataError(
        f"{path}: is a DICOM file of Modality {modality}; accepted are {accepted}. Leave it out, or name {modality} in "
        "--modalities (the bundle's dicom_modalities)."
    )


def _refuse_other_than_one_image(path: Path, header: Dataset) -> None:
    if "PixelData" not in header:
        kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")  # the latter of a DICOMDIR
        raise DataError(
            f"{path}: is a DICOM file without pixel data ({kind.name if kind else 'no SOP class'}), or its end is "
            "missing. Leave it out, or fetch it again."
        )
    frames = int(header.get("NumberOfFrames") or 1)
    if frames != 1:
        raise DataError(f"{path}: is a DICOM file of {frames} frames. Write one image a file.")
    photometric = header.PhotometricInterpretation
    if photometric not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB") and not photometric.startswith("YBR_"):
        raise DataError(f"{path}: is a DICOM file in {photometric}, which is not read here. Convert it to PNG.")


def _decoder_for(path: Path, header: Dataset) -> str:
    """Return the name of the decoder to use, or an empty one to leave the choice to pydicom."""
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise DataError(f"{path}: is a DICOM file that does not say how its pixels are compressed. Fetch it again.")
    if not syntax.is_encapsulated:
        return ""
    if not get_decoder(syntax).is_available:
        raise DataError(
            f"{path}: is a DICOM file compressed as {syntax.name} ({syntax}), for which no decoder is installed: "
            f"{EXTRA}"
        )
    # Pillow decodes baseline JPEG whether or not the extra is installed; the pixels must not depend on that.
    return "pillow" if syntax == uid.JPEGBaseline8Bit else ""


def _shown_gray(stored: np.ndarray, header: Dataset) -> np.ndarray:
    if header.PhotometricInterpretation == "PALETTE COLOR":
        return _shown_palette(stored, header)
    is_padding = _padding(stored, header)
    values = apply_modality_lut(stored, header)
    centre, width = _first(header, "WindowCenter"), _first(header, "WindowWidth")
    if header.get("VOILUTSequence"):
        shown = _look_up(values, header.VOILUTSequence[0], header.original_encoding[1] is not False)
    elif centre is not None and width is not None:
        shown = _window(values, centre, width, header.get("VOILUTFunction") or "LINEAR")
    else:
        shown = _stretch(values, ~is_padding)
    if header.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    shown[is_padding] = 0
    return shown.astype(np.float32)[None]


def _shown_palette(stored: np.ndarray, header: Dataset) -> np.ndarray:
    entries, _, bits = header.RedPaletteColorLookupTableDescriptor
    data = header.get("RedPaletteColorLookupTableData", b"")
    if len(data) == (entries or 2**16) > 256:  # pydicom's index into a table of bytes is a byte
        raise ValueError(f"palette of {entries} entries of one byte")
    colours = apply_color_lut(stored, header)[..., :3]
    top = 255 if bits == 8 and colours.max() <= 255 else np.iinfo(colours.dtype).max
    return (colours.transpose(2, 0, 1) / top).astype(np.float32)


def _shown_colour(stored: np.ndarray, header: Dataset) -> np.ndarray:
    return (stored.transpose(2, 0, 1) / (2**header.BitsStored - 1)).clip(0, 1).astype(np.float32)


def _padding(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """Where stored values are padding: equal to Pixel Padding Value, or up to Pixel Padding Range Limit."""
    value = header.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, bool)
    limit = header.get("PixelPaddingRangeLimit")
    low, high = sorted((value, value if limit is None else limit))
    return (stored >= low) & (stored <= high)


def _window(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Map values to [0, 1] by DICOM PS3.3 C.11.2.1.2 (linear) and C.11.2.1.3 (exact linear, sigmoid)."""
    if not width >= (1 if function == "LINEAR" else np.finfo(float).tiny):
        raise ValueError(f"window width {width:g} is too small for {function}")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if function not in ("LINEAR", "LINEAR_EXACT"):
        raise ValueError(f"VOI LUT function {function!r}")
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    if width == 0:
        return (values > centre).astype(np.float64)
    return np.clip((values - centre) / width + 0.5, 0, 1)


def _look_up(values: np.ndarray, table: Dataset, is_little: bool) -> np.ndarray:
    """Map values to [0, 1] by a VOI table (DICOM PS3.3 C.11.2.1.1), whose bits give the range."""
    # Not pydicom's apply_voi: it wraps the index of tables with 8-bit entries around at 256.
    entries, first, bits = table.LUTDescriptor
    data = table.LUTData
    if isinstance(data, bytes):
        kind = "u1" if len(data) == entries else "<u2" if is_little else ">u2"
        data = np.frombuffer(data, kind)
    data = np.asarray(data, np.float64)[: entries or 2**16]
    index = np.clip(np.rint(values) - first, 0, len(data) - 1).astype(np.int64)
    return np.clip(data[index] / (2**bits - 1), 0, 1)


def _stretch(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Map values to [0, 1] by the lowest and the highest of those that count."""
    if not counts.any():
        return np.zeros(values.shape)
    low, high = float(values[counts].min()), float(values[counts].max())
    return np.clip((values - low) / ((high - low) or 1), 0, 1)


def _first(header: Dataset, keyword: str) -> float | None:
    value = header.get(keyword)
    value = (value[0] if len(value) else None) if isinstance(value, MultiValue) else value
    return None if value is None else float(value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
