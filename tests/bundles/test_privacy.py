"""What a run writes names no patient and no place of the hospital's disks."""

import gzip

import numpy as np
import pytest
from dicom_files import save_dicom
from PIL import Image, PngImagePlugin
from pydicom import Dataset, uid

from medfusion_monai.cli import main
from medfusion_monai.demo.phantoms.draw_chest import draw_chest_phantom
from medfusion_monai.demo.phantoms.network import train_phantom_features

NAME, PATIENT, PLACE = "Planted^Person", "planted-id-4711", "planted_hospital_disk"


def write_dicom(path, pixels):
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.ComputedRadiographyImageStorage, "1.2.3"
    dataset.PatientName, dataset.PatientID, dataset.Modality = NAME, PATIENT, "CR"
    dataset.InstitutionName, dataset.AccessionNumber = f"{NAME} clinic", PATIENT
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    save_dicom(path, dataset)


def contents(path):
    """Give the bytes of a file as they are and, of packed formats, unpacked."""
    raw = path.read_bytes()
    yield raw
    if path.suffix == ".gz":
        yield gzip.decompress(raw)
    if path.suffix == ".png":
        with Image.open(path) as image:
            yield repr(image.info).encode()


@pytest.fixture(scope="module")
def written(bundle, tmp_path_factory):
    """Train on DICOM files of planted patients, sample and measure; give the folder of all that was written."""
    images = tmp_path_factory.mktemp(PLACE)
    rows = ["image,label,patient"]
    for index in range(40):
        pixels = np.rint(draw_chest_phantom(index, index % 2, 48)[0][0] * 255).astype(np.uint8)
        write_dicom(images / f"{index}.dcm", pixels)
        rows.append(f"{index}.dcm,{('no_cardiomegaly', 'cardiomegaly')[index % 2]},p{index}")
    (images / "labels.csv").write_text("\n".join(rows) + "\n")
    data = images / "data"
    table = ["--csv", str(images / "labels.csv"), "--patient-column", "patient"]
    classes = ["--classes", "no_cardiomegaly", "cardiomegaly"]
    assert main(["prepare", "folder", "--root", str(images), "--output", str(data), *table, *classes]) == 0
    train_phantom_features("cxr", images / "features.pt", num_images=32, steps=2)
    out = tmp_path_factory.mktemp("out")
    common = {"model_dir": str(out / "models"), "image_size": [48, 48]}
    bundle("training", dataset_dir=str(data), output_dir=str(out / "runs"), **common)
    bundle("inference", "inference.yaml", output_dir=str(out / "samples"), num_samples=4, **common)
    evaluate = {"dataset_dir": str(data), "samples_dir": str(out / "samples"), "output_dir": str(out / "report")}
    quiet = {"classifier_seeds": [], "replicates": 0, "features": f"phantoms:{images / 'features.pt'}"}
    bundle("evaluating", "evaluate.yaml", **evaluate, **quiet, **common)
    samples, model = ["--samples", str(out / "samples")], ["--model-file", str(out / "models")]
    small = ["--membership-images", "0", "--power-images", "0", "--no-pictures"]
    assert main(["audit", "--dataset-dir", str(data), "--output", str(out / "audit"), *samples, *model, *small]) == 0
    files = ["--report", str(out / "report" / "report.json"), "--audit", str(out / "audit" / "audit.json")]
    assert main(["card", str(out / "samples"), *model, *files]) == 0
    assert "## Closest pairs" not in (out / "samples" / "card.md").read_text()
    return out


@pytest.mark.parametrize("planted", [NAME, "Planted", PATIENT, PLACE])
def test_nothing_that_a_run_writes_names_a_patient_or_a_place(written, planted):
    files = [path for path in written.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert {".pt", ".json", ".csv", ".png", ".html", ".md"} <= kinds
    assert any("tfevents" in path.name for path in files)
    found = [path.name for path in files if any(planted.encode() in content for content in contents(path))]
    assert found == []


def test_what_is_planted_would_be_found(tmp_path):
    note = PngImagePlugin.PngInfo()
    note.add_text("Comment", PATIENT * 100, zip=True)
    Image.new("L", (4, 4)).save(tmp_path / "a.png", pnginfo=note)
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(NAME.encode()))
    (tmp_path / "c.txt").write_text(f"from {PLACE}")
    assert any(PATIENT.encode() in content for content in contents(tmp_path / "a.png"))
    assert any(NAME.encode() in content for content in contents(tmp_path / "b.nii.gz"))
    assert any(PLACE.encode() in content for content in contents(tmp_path / "c.txt"))
