"""Writes DICOM files by pydicom 2.4 or 3."""

from pydicom import uid
from pydicom.dataset import FileMetaDataset

from medfusion_monai.data.reading.dicom_decoding import IS_PYDICOM_2

if IS_PYDICOM_2:
    from pydicom.pixel_data_handlers.util import apply_windowing
else:
    from pydicom.pixels import apply_windowing

__all__ = ["apply_windowing", "save_dicom", "save_without_preamble"]


def save_dicom(path, dataset, syntax=uid.ExplicitVRLittleEndian):
    """Write a data set whose pixels are packed by ``syntax`` and return the path."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    if IS_PYDICOM_2:
        dataset.is_implicit_VR, dataset.is_little_endian = syntax.is_implicit_VR, syntax.is_little_endian
        dataset.save_as(path, write_like_original=False)
    else:
        dataset.save_as(path, enforce_file_format=True)
    return path


def save_without_preamble(path, dataset, little_endian):
    """Write the elements alone, with explicit types, and return the path."""
    if IS_PYDICOM_2:
        dataset.is_implicit_VR, dataset.is_little_endian = False, little_endian
        dataset.save_as(path)
    else:
        dataset.save_as(path, implicit_vr=False, little_endian=little_endian)
    return path
