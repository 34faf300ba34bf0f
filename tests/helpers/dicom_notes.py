"""What notes say of images that are written as DICOM files: of a sample, of an edit, and of a patient who is kept."""

from medfusion_monai.sampling.dicom_format import KINDS
from medfusion_monai.sampling.dicom_values import code, item

SAMPLE = {"file": "1_b_000000.dcm", "label": 1, "class_name": "b", "seed": 5, "weights_sha256": "ab" * 32}
EDIT = {
    "synthetic": True,
    "generator": "medfusion_monai",
    "file": "Doe_1234567.dcm",
    "label": 1,
    "class_name": "cardiomegaly",
    "seed": 0,
    "source": "Doe_1234567.png",
    "source_pixels": "cd" * 16,
    "own_label": 0,
    "index": 0,
    "instance": 3,
    "edit": "counterfactual",
    "strength": "0.5",
    "guidance_scale": "2.0",
    "num_inference_steps": "20",
    "spacing": "None",
    "keep_patient": "False",
    "weights_sha256": "ab" * 32,
    "version": "9.8.7",
}


def patient():
    """Return what is kept of a source."""
    source = item(ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.7", ReferencedSOPInstanceUID="1.2.3.4")
    source.PurposeOfReferenceCodeSequence = [code("121322", "DCM", "Source image for image processing operation")]
    return {
        "PatientName": "Doe^Jane",
        "PatientID": "1234567",
        "IssuerOfPatientID": "HOSPITAL",
        "PatientBirthDate": "19700203",
        "PatientSex": "F",
        "StudyInstanceUID": "1.2.3",
        "StudyID": "S1",
        "StudyDate": "20240102",
        "StudyTime": "101112",
        "AccessionNumber": "A1",
        "StudyDescription": "Chest, two views",
        "SourceImageSequence": [source],
    }


def cases(name):
    """Return the notes of images of all origins in a format, by name."""
    spacing = {KINDS[name].spacing: ["0.5", "0.25"]} if KINDS[name].spacing else {}
    kept = EDIT | {"keep_patient": "True", "patient": patient() | spacing}
    return {"sample": SAMPLE, "edit": EDIT, "edit of a patient": kept}
