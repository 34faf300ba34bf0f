"""``edit.yaml``: files of images in, edited files and a manifest out."""

import csv
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_files import save_dicom
from PIL import Image
from pydicom import Dataset, dcmread

import medfusion_monai as mf
from medfusion_monai.demo.phantoms.draw_chest import draw_chest_phantom
from medfusion_monai.editing import (
    KnownImages,
    anomaly_map,
    anomaly_threshold,
    calibrate,
    classify,
    counterfactual,
    interpolate,
    variations,
)
from medfusion_monai.editing.anomaly import ANOMALY_STRENGTH
from medfusion_monai.evaluation.image_set import open_image_set
from medfusion_monai.model import make_preprocessing
from medfusion_monai.runtime.errors import first_cause

CONFIGS = Path(__file__).parents[2] / "bundles" / "medfusion_cxr" / "configs"


@pytest.fixture(scope="module")
def models(trained, tmp_path_factory):
    """A models folder whose label has an effect, but no small difference a large one."""
    state = torch.load(trained / "models" / "model.pt", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name in ("autoencoder.conv_out.weight", "unet.conv_out.weight", "unet.class_embedding.weight"):
        scale = 1.0 if name == "unet.class_embedding.weight" else 0.05
        state[name] = scale * torch.randn(state[name].shape, generator=generator)
    place = tmp_path_factory.mktemp("calm")
    torch.save(state, place / "model.pt")
    shutil.copy(trained / "models" / "model.json", place)
    return place


@pytest.fixture
def folder(tmp_path):
    """Three phantoms as PNG files."""
    place = tmp_path / "scans"
    place.mkdir()
    for index in range(3):
        pixels = draw_chest_phantom(index, index % 2, 40)[0][0]
        Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(place / f"scan.{index}.png")
    return place


@pytest.fixture
def edit(bundle, models, tmp_path, folder):
    def run(name="edits", **overrides):
        places = {"model_dir": str(models), "output_dir": str(tmp_path / name), "images": str(folder)}
        steps = {} if overrides.get("edit") in ("reconstruct", "classify") else {"num_inference_steps": 3}
        bundle("editing", "edit.yaml", **(places | steps | overrides))
        return tmp_path / name

    return run


@pytest.fixture
def refused(edit, tmp_path):
    def run(**overrides):
        with pytest.raises((RuntimeError, ValueError)) as caught:
            edit(**overrides)
        assert not list(tmp_path.glob("edits/*.png"))
        cause = first_cause(caught.value)
        assert isinstance(cause, ValueError)
        return str(cause)

    return run


@pytest.fixture
def model(models):
    return mf.load(models, device="cpu")


@pytest.fixture
def images(model, folder):
    read = make_preprocessing(model)
    return torch.stack([read({"image": str(path)})["image"] for path in sorted(folder.glob("*.png"))])


def rows_of(place):
    with open(place / "manifest.csv", newline="") as file:
        return list(csv.DictReader(file))


def pixels_of(path):
    return torch.from_numpy(np.asarray(Image.open(path)) / np.float32(255))


def contents(place):
    return {path.name: path.read_bytes() for path in place.iterdir()}


def test_counterfactuals_are_those_of_python_and_say_what_they_are(edit, model, images):
    place = edit(label=1, own_label="no_cardiomegaly")
    rows = rows_of(place)
    assert [row["file"] for row in rows] == ["scan.0.png", "scan.1.png", "scan.2.png"]
    assert [row["source"] for row in rows] == ["scan.0.png", "scan.1.png", "scan.2.png"]
    assert {(row["class_name"], row["edit"], row["strength"]) for row in rows} == {
        ("cardiomegaly", "counterfactual", "0.5")
    }
    expected = counterfactual(model, images, 1, 0, num_inference_steps=3)
    for row, image in zip(rows, expected, strict=True):
        assert (pixels_of(place / row["file"]) - image[0]).abs().max() <= 0.5 / 255 + 1e-4
        with Image.open(place / row["file"]) as file:
            assert file.text["Synthetic"] == "true: edited by a generative model, may show a real patient"
            assert str(place.parent) not in str(file.text)


def test_stopped_run_is_continued_with_the_same_bytes(edit):
    place = edit(label=1, own_label=0, batch_size=2)
    whole = contents(place)
    (place / "scan.2.png").unlink()
    lines = (place / "manifest.csv").read_text().splitlines(keepends=True)
    (place / "manifest.csv").write_text("".join(lines[:3]))
    before = (place / "scan.0.png").stat().st_mtime_ns
    edit(label=1, own_label=0, batch_size=2)
    assert contents(place) == whole
    assert (place / "scan.0.png").stat().st_mtime_ns == before


def test_folder_of_another_edit_is_refused(edit):
    edit(label=1, own_label=0)
    with pytest.raises(RuntimeError) as caught:
        edit(label=1, own_label=0, strength=0.7)
    assert "strength 0.5, this run has 0.7" in str(first_cause(caught.value))


def test_folder_with_edits_of_other_images_is_refused(edit, folder):
    place = edit(edit="reconstruct")
    before = contents(place)
    shutil.copy(folder / "scan.1.png", folder / "scan.0.png")
    with pytest.raises(RuntimeError) as caught:
        edit(edit="reconstruct")
    assert "scan.0.png has source_pixels" in str(first_cause(caught.value))
    assert contents(place) == before


def test_broken_file_stops_the_run_or_is_left_out(edit, folder, refused):
    (folder / "broken.png").write_bytes((folder / "scan.0.png").read_bytes()[:100])
    message = refused(edit="reconstruct")
    assert "1 of 4 images cannot be read" in message
    assert "broken.png" in message
    assert "unreadable to skip" in message
    place = edit(edit="reconstruct", unreadable="skip")
    assert len(rows_of(place)) == 3
    with open(place / "unreadable.csv", newline="") as file:
        [row] = csv.DictReader(file)
    assert row["source"] == "broken.png"
    assert "truncated" in row["reason"]
    assert str(folder) not in row["reason"]
    shutil.copy(folder / "scan.0.png", folder / "broken.png")
    edit(edit="reconstruct", unreadable="skip")
    assert len(rows_of(place)) == 4
    assert not (place / "unreadable.csv").exists()


def test_nothing_readable_is_an_error(folder, refused):
    for path in folder.iterdir():
        path.write_bytes(b"no image")
    assert "3 of 3 images cannot be read" in refused(edit="reconstruct", unreadable="skip")


def test_probabilities_are_listed_without_images(edit, model, images):
    place = edit(edit="classify", num_levels=3, batch_size=2)
    assert {path.name for path in place.iterdir()} == {"manifest.csv"}
    expected = classify(model, images, num_levels=3).probabilities
    rows = rows_of(place)
    for row, probabilities in zip(rows, expected, strict=True):
        own = [float(row["probability_no_cardiomegaly"]), float(row["probability_cardiomegaly"])]
        assert own == pytest.approx(probabilities.tolist(), abs=1e-3)
        assert row["found_class"] == model.class_names[int(probabilities.argmax())]
        assert row["temperature"] == "None"
    whole = contents(place)
    edit(edit="classify", num_levels=3, batch_size=2)
    assert contents(place) == whole


def test_variations_are_numbered_and_those_of_python(edit, model, images):
    place = edit(edit="variations", number=2, label=1, seed=4, guidance_scale=1.0)
    assert [row["file"] for row in rows_of(place)][:2] == ["scan.0_0.png", "scan.0_1.png"]
    expected = variations(model, images, 1, n=2, seed=4, num_inference_steps=3, guidance_scale=1.0)
    for row, image in zip(rows_of(place), expected, strict=True):
        assert (pixels_of(place / row["file"]) - image[0]).abs().max() <= 0.5 / 255 + 1e-4


def test_masked_part_alone_is_new(edit, folder, tmp_path, model, images):
    marked = np.zeros((40, 40), np.uint8)
    marked[10:25, 15:30] = 1
    (tmp_path / "masks").mkdir()
    for index in range(3):
        Image.fromarray(np.roll(marked, index, 0)).save(tmp_path / "masks" / f"scan.{index}.tif")
    (tmp_path / "masks" / "notes.txt").write_text("of the first reader")
    place = edit(edit="inpaint", masks=str(tmp_path / "masks"), label=1, repeats=2)
    for index, image in enumerate(images):
        changed = (pixels_of(place / f"scan.{index}.png") - image[0]).abs() > 0.5 / 255 + 1e-4
        rows, columns = changed.nonzero().T
        # The mask in the model's 32x32 pixels.
        assert 7 + index * 0.8 <= rows.min()
        assert rows.max() <= 21 + index * 0.8
        assert columns.min() >= 11
        assert columns.max() <= 25
        assert changed.sum() > 50


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.ones((20, 20), np.uint8), "is a mask of 20x20 pixels, but its image"),
        (np.zeros((40, 40), np.uint8), "marks nothing of"),
        (np.ones((40, 40), np.uint8), "covers all of"),
        (None, "does not exist"),
    ],
)
def test_mask_of_no_use_is_refused(mask, words, refused, tmp_path):
    if mask is not None:
        Image.fromarray(mask).save(tmp_path / "mask.png")
    assert words in refused(edit="inpaint", label=0, masks=str(tmp_path / "mask.png"))


def test_image_without_a_mask_is_named(refused, tmp_path):
    (tmp_path / "masks").mkdir()
    assert "scan.0.png: has no mask" in refused(edit="inpaint", label=0, masks=str(tmp_path / "masks"))


def test_anomaly_maps_and_their_scores_are_those_of_python(edit, model, images):
    place = edit(edit="anomaly_map", label=0, smoothing=1.0)
    maps = anomaly_map(model, images, 0, smoothing=1.0, num_inference_steps=3)
    for row, one in zip(rows_of(place), maps, strict=True):
        assert float(row["score"]) == pytest.approx(float(one.max()), abs=1e-4)
        assert (pixels_of(place / row["file"]) - one[0]).abs().max() <= 0.5 / 255 + 1e-4


def test_frames_lead_from_one_file_to_another(edit, folder, model, images):
    files = [str(folder / "scan.0.png"), str(folder / "scan.1.png")]
    place = edit(edit="interpolate", images=files, number=3, own_label=1, batch_size=2)
    expected = interpolate(model, images[0], images[1], 3, label=1, num_inference_steps=3)
    names = ["frame_0.png", "frame_1.png", "frame_2.png"]
    assert [row["file"] for row in rows_of(place)] == names
    assert rows_of(place)[0]["source"] == "scan.0.png, scan.1.png"
    for name, image in zip(names, expected, strict=True):
        assert (pixels_of(place / name) - image[0]).abs().max() <= 0.5 / 255 + 1e-3


def test_prepared_set_says_the_classes_of_its_images(edit, dataset_dir, model):
    place = edit(images=str(dataset_dir), split="test", label=1)
    with open(dataset_dir / "datalist.json") as file:
        assert "test" in file.read()
    rows = rows_of(place)
    assert all(row["file"].startswith("images__phantom_") for row in rows)
    read = make_preprocessing(model)
    kept = 0
    for row in rows:
        image = read({"image": str(dataset_dir / row["source"])})["image"]
        kept += int((pixels_of(place / row["file"]) - image[0]).abs().max() < 2 / 255)
    assert kept == len(rows) / 2  # images of the wanted class are left as they are


def test_nifti_is_read_and_written(edit, tmp_path):
    pixels = draw_chest_phantom(0, 0, 32)[0][0]
    scan = nib.Nifti1Image(pixels.T.astype(np.float32), np.diag([-1.0, -1.0, 1.0, 1.0]))
    nib.save(scan, tmp_path / "one.nii.gz")
    place = edit(edit="reconstruct", images=str(tmp_path / "one.nii.gz"), output_format="nifti")
    written = nib.load(place / "one.nii.gz")
    assert b"SYNTHETIC, edited" in bytes(written.header["descrip"])


@pytest.fixture
def scans(tmp_path):
    """Two DICOM files of one patient, whose name and identifier their file names have."""
    place = tmp_path / "scans_dicom"
    place.mkdir()
    for index in range(2):
        pixels = np.rint(draw_chest_phantom(index, index, 40)[0][0] * 255).astype(np.uint8)
        scan = Dataset()
        scan.SOPClassUID, scan.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", f"1.2.3.{index}"
        scan.StudyInstanceUID, scan.PatientName, scan.PatientID = "1.2.3", "Doe^Jane", "7654321"
        scan.Modality, scan.SamplesPerPixel, scan.PhotometricInterpretation = "OT", 1, "MONOCHROME2"
        scan.Rows, scan.Columns = pixels.shape
        scan.BitsAllocated, scan.BitsStored, scan.HighBit, scan.PixelRepresentation = 8, 8, 7, 0
        scan.PixelData = pixels.tobytes()
        save_dicom(place / f"Doe_7654321_{index}.dcm", scan)
    return place


def test_dicom_files_of_edits_name_no_patient_and_repeat(edit, scans, tmp_path):
    call = {"label": 1, "own_label": 0, "images": str(scans), "output_format": "dicom"}
    first, second = edit("first", **call), edit("second", **call)
    files = [path for path in sorted(first.iterdir()) if path.suffix == ".dcm"]
    assert [path.name for path in files] == ["Doe_7654321_0.dcm", "Doe_7654321_1.dcm"]
    for number, path in enumerate(files):
        content = path.read_bytes()
        assert content == (second / path.name).read_bytes()
        assert b"Doe" not in content
        assert b"7654321" not in content
        assert dcmread(path).InstanceNumber == number + 1
    headers = [dcmread(path) for path in files]
    assert len({file.SOPInstanceUID for file in headers}) == 2
    assert len({file.StudyInstanceUID for file in headers}) == 1


def test_patient_is_kept_where_it_is_said(edit, scans, model):
    place = edit(label=1, own_label=0, images=str(scans), output_format="dicom", keep_patient=True)
    for index, path in enumerate(sorted(place.glob("*.dcm"))):
        file = dcmread(path)
        assert (str(file.PatientName), file.PatientID, file.StudyInstanceUID) == ("Doe^Jane", "7654321", "1.2.3")
        assert file.SourceImageSequence[0].ReferencedSOPInstanceUID == f"1.2.3.{index}"
        assert file[0x0008001C].value == "YES"
    assert {row["keep_patient"] for row in rows_of(place)} == {"True"}


def test_x_ray_of_a_patient_has_the_spacing_of_its_source_after_the_resize(edit, refused, scans, model):
    call = {"label": 1, "own_label": 0, "images": str(scans), "output_format": "dicom_dx", "keep_patient": True}
    assert "states no ImagerPixelSpacing, which dicom_dx requires" in refused(**call)
    for path in sorted(scans.iterdir()):
        scan = dcmread(path)
        scan.ImagerPixelSpacing = ["0.5", "0.5"]
        scan.save_as(path)
        sides = scan.Rows, scan.Columns
    factor = max(new / old for new, old in zip(model.image_size, sides, strict=True))
    written = [dcmread(path).ImagerPixelSpacing for path in edit("kept", **call).glob("*.dcm")]
    assert len(written) == 2
    assert np.allclose(np.array(written, float), 0.5 / factor)


def test_pixels_of_a_dicom_edit_are_those_of_the_png(edit):
    call = {"label": 1, "own_label": 0}
    dicom, png = edit("dicom", output_format="dicom_dx", **call), edit("png", **call)
    for path in sorted(dicom.glob("*.dcm")):
        written = Image.open(png / path.with_suffix(".png").name)
        assert np.array_equal(dcmread(path).pixel_array, np.asarray(written))


@pytest.fixture
def healthy(tmp_path):
    """Twenty phantoms of the first class."""
    place = tmp_path / "healthy"
    place.mkdir()
    for index in range(20):
        pixels = draw_chest_phantom(100 + index, 0, 40)[0][0]
        Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(place / f"{index:02}.png")
    return place


def test_threshold_and_flags_are_those_of_healthy_images(edit, model, images, healthy, capsys):
    call = {"edit": "anomaly_map", "label": 0, "healthy": str(healthy), "false_positive_rate": 0.2}
    place = edit(**call)
    assert "of 20 healthy images: at most 20% of other healthy images" in capsys.readouterr().out
    read = make_preprocessing(model)
    others = torch.stack([read({"image": str(path)})["image"] for path in sorted(healthy.iterdir())])
    expected = anomaly_threshold(anomaly_map(model, others, 0, num_inference_steps=3), 0.2).value
    scores = anomaly_map(model, images, 0, num_inference_steps=3).flatten(1).amax(1)
    rows = rows_of(place)
    for row, score in zip(rows, scores, strict=True):
        assert float(row["threshold"]) == pytest.approx(expected, abs=1e-4)
        assert row["flag"] == ("yes" if score > expected else "no")
        assert row["false_positive_rate"] == "0.2"
    whole = contents(place)
    edit(**call)
    assert contents(place) == whole
    for change in ({"false_positive_rate": 0.1}, {"strength": 0.6}):
        with pytest.raises((RuntimeError, ValueError)) as caught:
            edit(**(call | change))
        [(name, value)] = change.items()
        assert f"has {name} {call.get(name, ANOMALY_STRENGTH)}, this run has {value}" in str(first_cause(caught.value))
    assert contents(place) == whole


def test_known_images_that_were_scored_are_not_scored_again(edit, healthy, monkeypatch):
    call = {"edit": "anomaly_map", "label": 0, "healthy": str(healthy), "batch_size": 4}
    place = edit(**call)
    scores = place / "known_images.csv"
    lines = scores.read_text().splitlines(keepends=True)
    whole = contents(place)
    (place / "manifest.csv").unlink()
    scores.write_text("".join(lines[:13]) + lines[13][:20])
    calls = []
    scored = KnownImages._scores
    monkeypatch.setattr(KnownImages, "_scores", lambda self, batch: calls.append(batch["file"]) or scored(self, batch))
    edit(**call)
    assert [len(files) for files in calls] == [4, 4]
    assert contents(place) == whole


def test_flag_follows_a_given_threshold(edit):
    place = edit(edit="anomaly_map", label=0)
    assert {(row["flag"], row["threshold"]) for row in rows_of(place)} == {("", "None")}
    scores = sorted(float(row["score"]) for row in rows_of(place))
    other = edit("flagged", edit="anomaly_map", label=0, threshold=(scores[0] + scores[1]) / 2)
    assert sorted((float(row["score"]), row["flag"]) for row in rows_of(other)) == [
        (scores[0], "no"),
        (scores[1], "yes"),
        (scores[2], "yes"),
    ]


def test_prepared_set_gives_its_healthy_images_of_the_validation_split(edit, dataset_dir, refused):
    message = refused(edit="anomaly_map", label=0, healthy=str(dataset_dir))
    assert "needs at least 19 healthy images, received" in message
    place = edit(edit="anomaly_map", label=0, healthy=str(dataset_dir), false_positive_rate=0.5)
    listed = json.loads((dataset_dir / "datalist.json").read_text())["validation"]
    names = {item["image"] for item in listed if item["label"] == 0}
    with open(place / "known_images.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(names)


def test_temperature_is_that_of_labelled_images(edit, model, dataset_dir):
    call = {"edit": "classify", "num_levels": 3, "labelled": str(dataset_dir)}
    place = edit(**call)
    split = open_image_set("known", dataset_dir, "validation")
    read = make_preprocessing(model)
    known = torch.stack([read({"image": path})["image"] for path in split.paths])
    found = classify(model, known, num_levels=3)
    expected = calibrate(found.log_likelihoods, [item["label"] for item in split.items]).temperature
    for row in rows_of(place):
        assert float(row["temperature"]) == pytest.approx(expected, rel=1e-3)


def test_labelled_images_need_classes(refused, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "known")
    message = refused(edit="classify", labelled=str(tmp_path / "known"))
    assert "must have at least two images, each with one of the model's classes" in message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"edit": "sharpen"}, ["edit must be one of reconstruct, counterfactual", "'sharpen'"]),
        ({}, ["label must be given for edit counterfactual"]),
        ({"label": "ill"}, ["label 'ill'", "0 no_cardiomegaly"]),
        ({"label": 1, "own_label": 7}, ["own_label 7"]),
        ({"label": 1, "strength": 0}, ["strength must be above 0"]),
        ({"label": 1, "strength": 1.1}, ["received 1.1"]),
        ({"edit": "classify", "label": 1}, ["label 1 has no effect on edit classify"]),
        ({"edit": "reconstruct", "strength": 0.5}, ["strength 0.5 has no effect on edit reconstruct"]),
        ({"label": 1, "number": 3}, ["number 3 has no effect", "strength, guidance_scale"]),
        ({"label": 1, "masks": "/nowhere"}, ["masks '/nowhere' have no effect"]),
        ({"edit": "inpaint", "label": 1}, ["masks must be given for edit inpaint"]),
        ({"edit": "anomaly_map", "label": 0, "smoothing": -1}, ["smoothing"]),
        ({"label": 1, "images": "/nowhere"}, ["/nowhere", "not a folder"]),
        ({"label": 1, "images": None}, ["images must be a folder, a file or a list of files", "None"]),
        ({"label": 1, "images": []}, ["images must be"]),
        ({"label": 1, "split": "test"}, ["has no datalist.json"]),
        ({"label": 1, "unreadable": "ignore"}, ["unreadable must be stop", "'ignore'"]),
        ({"edit": "interpolate", "number": 1}, ["number must be a whole number of at least 2"]),
        ({"edit": "interpolate"}, ["images must be two for edit interpolate", "received 3"]),
        ({"label": 1, "batch_size": 0}, ["batch_size"]),
        ({"label": 1, "seed": -1}, ["seed"]),
        ({"label": 1, "output_format": "jpeg"}, ["jpeg"]),
        ({"label": 1, "output_format": "dicom_gm"}, ["does not support images of 1 channels"]),
        ({"label": 1, "keep_patient": True}, ["keep_patient has an effect on DICOM files only"]),
        ({"label": 1, "keep_patient": "x", "output_format": "dicom"}, ["keep_patient must be true or false"]),
        ({"label": 1, "keep_patient": True, "output_format": "dicom"}, ["3 of 3 images", "is not a DICOM file"]),
        (
            {"edit": "interpolate", "number": 2, "keep_patient": True, "output_format": "dicom"},
            ["no effect on edit interpolate"],
        ),
        ({"edit": "anomaly_map", "label": 0, "threshold": -1}, ["threshold"]),
        ({"label": 1, "threshold": 0.2}, ["threshold 0.2 has no effect on edit counterfactual"]),
        ({"label": 1, "healthy": "/nowhere"}, ["healthy '/nowhere' has no effect on edit counterfactual"]),
        ({"edit": "classify", "healthy": "/nowhere"}, ["healthy '/nowhere' has no effect on edit classify"]),
        ({"edit": "anomaly_map", "label": 0, "false_positive_rate": 0.1}, ["no effect without healthy"]),
        ({"edit": "anomaly_map", "label": 0, "known_split": "test"}, ["known_split 'test' has no effect"]),
        (
            {"edit": "anomaly_map", "label": 0, "threshold": 0.1, "healthy": "/nowhere"},
            ["healthy and threshold both determine the threshold"],
        ),
        (
            {"edit": "classify", "temperature": 2, "labelled": "/nowhere"},
            ["labelled and temperature both determine the temperature"],
        ),
        ({"label": 1, "steps": 5}, ["--steps", "not a key of this config"]),
    ],
    ids=str,
)
def test_bad_request_is_refused_with_what_to_do(overrides, words, refused):
    message = refused(**overrides)
    assert all(word in message for word in words), message


def test_output_among_the_images_is_refused(refused, folder):
    assert "in the folder of the images" in refused(label=1, output_dir=str(folder / "edits"))


def test_two_images_for_one_file_are_refused(refused, folder):
    shutil.copy(folder / "scan.0.png", folder / "scan.0.jpg")
    assert "would both be written as scan.0.png" in refused(label=1)


def test_modules_that_expressions_use_are_imported():
    text = (CONFIGS / "edit.yaml").read_text()
    imports, expressions = text.split("\n# Where things are", 1)
    used = set(re.findall(r"medfusion_monai\.(?:runtime|weights)\.\w+", expressions))
    assert "medfusion_monai.runtime.memory_format" in used
    assert used <= set(re.findall(r"\$import (\S+)", imports))
