"""What a DICOM file says of the origin of its image: patient, study, series, equipment, and how it was made.

A sample shows nobody; an edited image still shows its patient, and its file must not say otherwise. Of this patient the
file keeps what the entry ``patient`` of its note says, and nothing without.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import medfusion_monai
from medfusion_monai.data.reading.synthetic_marks import SYNTHETIC_DATA
from medfusion_monai.sampling.dicom_values import MAKER, as_text, code, digest, item, uid

if TYPE_CHECKING:
    from pydicom import Dataset

Note = Mapping[str, Any]

OF_AN_IMAGE = ("file", "label", "class_name", "seed", "synthetic", "generator")
"""Entries of a note that differ between the images of a run; the others identify its study."""
OF_A_FRAME = ("file", "frame", "synthetic", "generator")
"""Likewise, of the frames between two seeds."""
OF_AN_EDIT = (*OF_AN_IMAGE, "source", "source_pixels", "own_label", "index", "instance", "patient")
"""Likewise, of an edited image."""
FIGURES = ("score", "flag")
"""Entries that follow from the others."""
SAMPLER = ("sampler", "num_inference_steps", "guidance_scale")
"""Entries of a sample's note that its file repeats in words."""
EDITING = ("strength", "guidance_scale", "smoothing", "repeats", "num_inference_steps", "spacing")
"""Likewise, of an edited image."""
GENERATORS = {"gan": "generative adversarial network"}
"""Kinds of models by the entry ``sampler``; all others are latent diffusion models."""
EDITED = "Edited by a latent diffusion model"


def is_edited(file: Dataset) -> bool:
    """Return whether a file of this project shows an edited image, and so a patient."""
    return str(file.get("DerivationDescription", "")).startswith(EDITED)


def add_origin(file: Dataset, note: Note) -> None:
    """Add everything about patient, study, series, equipment and how the image was made.

    Args:
        file: gets the attributes.
        note: of the image; with an entry ``edit`` it is an edited one. Its entry ``patient``, if there is one, has
            attributes of the patient and the study by keyword, and ``SourceImageSequence``.
    """
    file.SpecificCharacterSet = "ISO_IR 192"
    file.add_new(SYNTHETIC_DATA, "CS", "YES")  # pydicom 2 does not know its name
    file.ImageType = ["DERIVED", "SECONDARY"]
    if "edit" in note:
        _add_edit(file, note)
    else:
        _add_sample(file, note)


def _add_sample(file: Dataset, note: Note) -> None:
    varying = OF_A_FRAME if "frame" in note else OF_AN_IMAGE
    run = as_text({name: value for name, value in note.items() if name not in varying})
    label, (title, what) = int(note.get("label", 0)), _shown(note)
    weights, study = str(note.get("weights_sha256", "unknown")), uid("study", run)
    file.SOPInstanceUID = uid("image", as_text({name: value for name, value in note.items() if name != "file"}))
    file.BurnedInAnnotation = "NO"
    file.PatientName, file.PatientID = "SYNTHETIC^NO REAL PATIENT", f"SYNTHETIC-{digest(study)[:12].upper()}"
    file.PatientComments = "Synthetic: made by a generative model, shows no real patient"
    _add_study(file, study, "Synthetic images")
    file.SeriesInstanceUID, file.SeriesNumber = uid("series", study, str(label)), label + 1
    file.SeriesDescription = f"Synthetic, {title}".replace("\\", "/")[:64]  # a backslash separates values
    file.InstanceNumber = _number_of(str(note.get("file", "")))
    _add_equipment(file, note, "109100", "Synthesizing Equipment", "Synthesized the image")
    file.ImageComments = f"Synthetic: {what}, {_in_words(note, SAMPLER)}, weights {weights}"[:10240]
    noise = "noise between that of two seeds" if "frame" in note else "noise"
    maker = GENERATORS.get(str(note.get("sampler")), "latent diffusion model")
    file.DerivationDescription = f"Sampled from {noise} by a {maker}, weights SHA-256 {weights}"[:1024]


def _shown(note: Note) -> tuple[str, str]:
    """Return the title of a sample's series, and class and seed in words; of a frame, those of both ends."""
    name = str(note.get("class_name", ""))
    what = f"class {note.get('label', 0)} {name}, seed {note.get('seed', 'unknown')}"
    if "frame" not in note:
        return name, what
    end = f"class {note['end_label']} {note['end_class_name']}, seed {note['end_seed']}"
    title = f"frames, {name} to {note['end_class_name']}"
    return title, f"frame {int(note['frame']) + 1} of {note['frames']} from {what}, to {end}"


def _add_edit(file: Dataset, note: Note) -> None:
    """Add the origin of an edited image; names of files, which may name patients, are neither repeated nor hashed."""
    run = as_text({name: value for name, value in note.items() if name not in (*OF_AN_EDIT, *FIGURES)})
    own = {name: note[name] for name in ("label", "seed", "source_pixels", "own_label", "index") if name in note}
    weights, study = str(note.get("weights_sha256", "unknown")), uid("edits", run)
    file.SOPInstanceUID = uid("edit", run, as_text(own))
    file.PatientName, file.PatientID = "EDITED^PATIENT NOT NAMED", f"EDITED-{digest(study)[:12].upper()}"
    _add_study(file, study, "Edited images")
    file.InstanceNumber = int(note.get("instance", 1))
    _add_equipment(file, note, "109103", "Modifying Equipment", "Edited the image")
    edit, shown = str(note["edit"]), str(note.get("class_name", ""))
    what = f"{edit}, class {note['label']} {shown}" if shown else edit
    how = ", ".join(part for part in (what, _in_words(note, EDITING), f"seed {note.get('seed', 'unknown')}") if part)
    file.SeriesDescription = f"Edited, {edit}, {shown}".rstrip(", ").replace("\\", "/")[:64]
    file.ImageComments = f"Edited, may show a real patient: {how}, weights {weights}"[:10240]
    file.DerivationDescription = f"{EDITED}: {how}, weights SHA-256 {weights}"[:1024]
    file.PatientComments = "Edited by a generative model: the image may show a real patient, who is not named here"
    patient = note.get("patient")
    if patient is not None:
        file.PatientComments = "Edited by a generative model from an image of this patient: not as it was acquired"
        file.PatientIdentityRemoved = "NO"
        for keyword, value in patient.items():
            setattr(file, keyword, value)
    file.SeriesInstanceUID, file.SeriesNumber = uid("series", file.StudyInstanceUID, run), None


def _add_study(file: Dataset, study: str, title: str) -> None:
    file.IssuerOfPatientID, file.PatientBirthDate, file.PatientSex = MAKER, "", ""
    file.StudyInstanceUID, file.StudyID, file.AccessionNumber = study, digest(study)[:12].upper(), ""
    file.StudyDate, file.StudyTime, file.ReferringPhysicianName = "", "", ""
    file.StudyDescription = title


def _add_equipment(file: Dataset, note: Note, purpose: str, meaning: str, contribution: str) -> None:
    weights = str(note.get("weights_sha256", "unknown"))
    device = {
        "Manufacturer": MAKER,
        "ManufacturerModelName": "Medfusion",
        "DeviceSerialNumber": weights[:16],
        "SoftwareVersions": str(note.get("version", medfusion_monai.__version__)),
    }
    for keyword, value in device.items():
        setattr(file, keyword, value)
    maker = item(**device, ContributionDescription=f"{contribution}; weights SHA-256 {weights}")
    maker.PurposeOfReferenceCodeSequence = [code(purpose, "DCM", meaning)]
    file.ContributingEquipmentSequence = [maker]


def _in_words(note: Note, names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {note[name]}" for name in names if str(note.get(name)) != "None")


def _number_of(file: str) -> int:
    """Return the number at the end of a file's name, counted from 1."""
    digits = "".join(character if character.isdigit() else " " for character in Path(file).name.split(".")[0]).split()
    return int(digits[-1]) + 1 if digits else 1
