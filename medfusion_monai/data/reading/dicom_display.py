"""Converts stored values of a DICOM image to the pixels that a viewer shows first."""

from __future__ import annotations

from collections.abc import MutableSequence

import numpy as np
from pydicom import Dataset

from medfusion_monai.data.reading.dicom_decoding import apply_color_lut, apply_modality_lut
from medfusion_monai.data.reading.value_range import ValueRange, to_unit_range


def shown(stored: np.ndarray, header: Dataset, value_range: ValueRange | None = None) -> np.ndarray:
    """Convert stored values, (H, W) or (H, W, 3), to float32 of shape (C, H, W) in [0, 1].

    Args:
        stored: the values.
        header: of the file.
        value_range: values after rescaling that become 0 and 1, instead of table and window; unused for palettes.
    """
    if stored.ndim == 2:
        return _shown_gray(stored, header, value_range)
    pixels = to_unit_range(stored, value_range or (0, 2**header.BitsStored - 1))
    return pixels.transpose(2, 0, 1).astype(np.float32)


def _shown_gray(stored: np.ndarray, header: Dataset, value_range: ValueRange | None) -> np.ndarray:
    if header.PhotometricInterpretation == "PALETTE COLOR":
        return _shown_palette(stored, header)
    is_padding = _padding(stored, header)
    values = apply_modality_lut(stored, header)
    centre, width = _first(header, "WindowCenter"), _first(header, "WindowWidth")
    if value_range is not None:
        shown = to_unit_range(values, value_range)
    elif header.get("VOILUTSequence"):
        shown = _look_up(values, header.VOILUTSequence[0], header.file_meta.TransferSyntaxUID.is_little_endian)
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
    if len(data) == (entries or 2**16) > 256:  # pydicom indexes a table of bytes with a byte
        raise ValueError(f"palette of {entries} entries of one byte")
    colours = apply_color_lut(stored, header)[..., :3]
    top = 255 if bits == 8 and colours.max() <= 255 else np.iinfo(colours.dtype).max
    return (colours.transpose(2, 0, 1) / top).astype(np.float32)


def _padding(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """Return a mask of padding: values equal to Pixel Padding Value, or up to Pixel Padding Range Limit."""
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
    # Not pydicom's apply_voi, which wraps the index at 256 for tables with 8-bit entries.
    entries, first, bits = table.LUTDescriptor
    data = table.LUTData
    if isinstance(data, bytes):
        kind = "u1" if len(data) == entries else "<u2" if is_little else ">u2"
        data = np.frombuffer(data, kind)
    data = np.asarray(data, np.float64)[: entries or 2**16]
    index = np.clip(np.rint(values) - first, 0, len(data) - 1).astype(np.int64)
    return np.clip(data[index] / (2**bits - 1), 0, 1)


def _stretch(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Map values to [0, 1] by the lowest and highest of those in ``counts``."""
    if not counts.any():
        return np.zeros(values.shape)
    low, high = float(values[counts].min()), float(values[counts].max())
    return np.clip((values - low) / ((high - low) or 1), 0, 1)


def _first(header: Dataset, keyword: str) -> float | None:
    value = header.get(keyword)
    value = (value[0] if len(value) else None) if isinstance(value, MutableSequence) else value
    return None if value is None else float(value)
