"""Studies for tests of the app for MONAI Label."""

import os

import nibabel as nib
import numpy as np
from dicom_files import save_dicom
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from tiny_models import ROOT

SIZE = (16, 24)
BUNDLES = {
    "cxr": (("no_cardiomegaly", "cardiomegaly"), 1),
    "fundus": (("no_referable_glaucoma", "referable_glaucoma"), 3),
    "histo": (("msi", "mss"), 3),
}


def environment():
    """Return the variables of a server: our package first, as in the tests, and one thread."""
    place = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": place, "OMP_NUM_THREADS": "1", "MEDFUSION_PACS_PASSWORD": "secret"}


def drawn(channels, size=SIZE, seed=0):
    """Return 8-bit pixels (H, W) or (H, W, 3), none like another, brighter to the right and below."""
    random = np.random.default_rng(seed)
    ramp = np.linspace(20, 120, size[0])[:, None] + np.linspace(0, 100, size[1])
    pixels = np.clip(ramp[..., None] + random.integers(0, 30, (*size, channels)), 0, 255).astype(np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def dicom_of(pixels, modality="OT"):
    """Return a DICOM data set of 8-bit pixels with a spacing of its own."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.SecondaryCaptureImageStorage, uid.generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid.generate_uid(), uid.generate_uid()
    dataset.PatientID, dataset.PatientName, dataset.Modality = "P1", "Test^Patient", modality
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    else:
        dataset.WindowCenter, dataset.WindowWidth = 100, 160
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelSpacing, dataset.PixelData = [0.5, 0.25], pixels.tobytes()
    return dataset


def write_studies(folder, channels):
    """Write studies of the model's size in every format, a larger one, and files that are refused."""
    Image.fromarray(drawn(channels, seed=1)).save(folder / "plain.png")
    Image.fromarray(drawn(channels, (40, 90), seed=2)).save(folder / "large.png")
    save_dicom(folder / "scan.dcm", dicom_of(drawn(channels, seed=3)))
    save_dicom(folder / "ct.dcm", dicom_of(drawn(channels, seed=4), "CT"))
    (folder / "notes.png").write_text("no image")
    values = drawn(channels, seed=5)[::-1].swapaxes(0, 1)  # as a file whose rows run to the head has them
    if channels == 3:
        values = np.ascontiguousarray(values).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    affine = np.array([[-1.5, 0, 0, 40], [0, 0, 3.0, -7], [0, 2.5, 0, 12], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(values[..., None], affine), folder / "turned.nii.gz")
