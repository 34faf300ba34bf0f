"""A real server of MONAI Label with our app, over HTTP, by MONAI Label's own client and Slicer's parameters."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import requests
import torch
from PIL import Image

pytest.importorskip("monailabel", reason="make test-monailabel has MONAI Label")

import SimpleITK
from label_studies import SIZE, environment
from local_servers import LOCAL
from monailabel.client.client import MONAILabelClientException

from medfusion_monai import editing
from medfusion_monai.apps.monailabel.label_maps import change_map, marked_map, smoothed_difference
from medfusion_monai.data.reading.images import read_image
from medfusion_monai.data.reading.synthetic_marks import marked_synthetic
from medfusion_monai.model import make_preprocessing

pytestmark = pytest.mark.slow
FILES = {"plain": "plain.png", "scan": "scan.dcm", "turned": "turned.nii.gz"}
SLICER = {"result_extension": ".nrrd", "result_dtype": "uint8"}


def table(served, task):
    """Return the parameters that Slicer sends if nothing in its table is changed."""
    config = served.client.info()["models"][task]["config"]
    return {name: value[0] if isinstance(value, list) else value for name, value in config.items()} | SLICER


def ask(served, task, study, **changed):
    file, answer = served.client.infer(task, study, {**table(served, task), **changed.pop("also", {}), **changed})
    return SimpleITK.ReadImage(file), answer


def seen(served, study):
    """Return what the model sees of a study, as the Python API reads it: (1, C, H, W)."""
    return make_preprocessing(served.model)({"image": str(served.studies / FILES[study])})["image"][None]


def upright(result, folder):
    """Return a result (C, H, W) as our own reader of NIfTI orients it."""
    SimpleITK.WriteImage(result, str(folder / "result.nii.gz"))
    if result.GetNumberOfComponentsPerPixel() == 1:
        return np.rint(read_image(folder / "result.nii.gz") * 255).astype(np.uint8)
    return np.moveaxis(SimpleITK.GetArrayFromImage(result).reshape(*result.GetSize()[1::-1], -1), -1, 0)


def assert_same_geometry(result, path):
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    assert result.GetSize() == reader.GetSize()
    assert result.GetSpacing() == pytest.approx(reader.GetSpacing())
    assert result.GetOrigin() == pytest.approx(reader.GetOrigin())
    assert result.GetDirection() == pytest.approx(reader.GetDirection())


def refused(served, task, study, status=400, **changed):
    """Return the text with which a request is refused."""
    label = changed.pop("label_in", None)
    with pytest.raises(MONAILabelClientException) as caught:
        served.client.infer(task, study, {**table(served, task), **changed}, label)
    assert f"Status: {status};" in caught.value.msg
    return json.loads(caught.value.msg.partition("Response: ")[2])["detail"]


def test_clients_see_tasks_types_labels_and_options(served):
    info = served.client.info()
    types = {name: model["type"] for name, model in info["models"].items()}
    shown = ["counterfactual", "anomaly", "inpaint", "generate"]
    assert types == {**dict.fromkeys(shown, "segmentation"), "classify": "classification", "reconstruct": "others"}
    assert info["models"]["counterfactual"]["labels"] == {"appears": 1, "disappears": 2}
    config = info["models"]["counterfactual"]["config"]
    assert config["class"] == ["other", *served.model.class_names]
    assert config["strength"] == 0.5
    assert config["save_image"] is False
    assert set(info["strategies"]) == {"random", "first", "synthetic"}
    assert info["trainers"] == {}


@pytest.mark.parametrize("study", FILES)
def test_counterfactual_marks_what_the_python_api_changes(served, study, tmp_path):
    own, label = served.model.class_names
    result, answer = ask(served, "counterfactual", study, **{"class": label}, own_class=own, threshold="0.002")
    image = seen(served, study)
    changed = editing.counterfactual(served.model, image, label, own)
    expected = change_map(smoothed_difference((changed - image)[0], 2.0), 0.002)
    assert set(np.unique(expected)) >= {1, 2}
    assert np.array_equal(upright(result, tmp_path)[0], expected)
    assert_same_geometry(result, served.studies / FILES[study])
    assert answer["label_names"] == {"appears": 1, "disappears": 2}
    assert (answer["own_class"], answer["class"]) == (own, label)


def test_other_class_is_the_one_that_classify_does_not_find(served):
    _, answer = ask(served, "counterfactual", "plain")
    found = editing.classify(served.model, seen(served, "plain")).labels[0]
    names = served.model.class_names
    assert (answer["own_class"], answer["class"]) == (names[found], names[1 - found])


@pytest.mark.parametrize("study", FILES)
def test_anomalies_are_those_of_the_python_api(served, study, tmp_path):
    healthy = served.model.class_names[0]
    values = editing.anomaly_map(served.model, seen(served, study), healthy)[0, 0]
    threshold = round(float(values.mean()), 6)
    result, answer = ask(served, "anomaly", study, threshold=str(threshold))
    expected = marked_map(values, threshold)
    assert 0 < expected.mean() < 1
    assert np.array_equal(upright(result, tmp_path)[0], expected)
    assert answer["score"] == pytest.approx(float(values.max()), abs=1e-5)


@pytest.mark.parametrize("study", FILES)
def test_suggested_class_is_that_of_the_python_api(served, study):
    answer = requests.post(f"http://{LOCAL}:{served.port}/infer/classify?image={study}", timeout=60).json()
    found = editing.classify(served.model, seen(served, study), temperature=3.0)
    assert answer["suggested_class"] == served.model.class_names[found.labels[0]]
    assert answer["is_calibrated"] is True
    assert [one["label"] for one in answer["prediction"]] == served.model.class_names
    assert [one["score"] for one in answer["prediction"]] == pytest.approx(found.probabilities[0].tolist(), abs=1e-5)


@pytest.mark.parametrize("study", FILES)
def test_region_that_the_client_sends_is_inpainted_as_by_the_python_api(served, study, tmp_path):
    mask = np.zeros(SIZE, np.uint8)
    mask[3:9, 5:14] = 7
    reference = SimpleITK.ReadImage(str(served.studies / FILES[study]))
    rows = mask[::-1] if study == "turned" else mask  # its rows run to the head
    shape = reference.GetSize()[::-1]
    label = SimpleITK.GetImageFromArray(rows.reshape(shape).copy())
    label.CopyInformation(reference)
    SimpleITK.WriteImage(label, str(tmp_path / "label.nrrd"))
    chosen = {**table(served, "inpaint"), "class": served.model.class_names[1], "seed": 4, "save_image": False}
    file, answer = served.client.infer("inpaint", study, chosen, str(tmp_path / "label.nrrd"))
    assert np.array_equal(upright(SimpleITK.ReadImage(file), tmp_path)[0], mask > 0)
    file, _ = served.client.infer("inpaint", study, {**chosen, "result": "image"}, str(tmp_path / "label.nrrd"))
    painted = editing.inpaint(served.model, seen(served, study), torch.tensor(mask), 1, seed=4)[0]
    expected = np.rint(painted.numpy() * 255).astype(np.uint8)
    result = upright(SimpleITK.ReadImage(file), tmp_path)
    if study == "turned" and len(expected) == 3:
        expected = expected[:, ::-1]
    assert np.array_equal(result, expected)
    assert "study" not in answer


@pytest.mark.parametrize("study", FILES)
def test_reconstruction_is_upright_and_that_of_the_python_api(served, study, tmp_path):
    result, _ = ask(served, "reconstruct", study)
    expected = np.rint(served.model.reconstruct(seen(served, study))[0].numpy() * 255).astype(np.uint8)
    if study == "turned" and len(expected) == 3:
        expected = expected[:, ::-1]  # rows as in the file
    assert np.array_equal(upright(result, tmp_path), expected)
    assert_same_geometry(result, served.studies / FILES[study])


def test_reconstruction_of_a_larger_study_is_black_where_the_model_does_not_look(served):
    result, _ = ask(served, "reconstruct", "large")
    values = SimpleITK.GetArrayFromImage(result)
    assert values.shape[:2] == (40, 90)
    assert values[:, :14].max() == values[:, 76:].max() == 0  # 24 of 36 columns at the model's size
    assert values[:, 16:74].max() > 0


def test_counterfactual_of_a_larger_study_keeps_its_details(served):
    own, label = served.model.class_names
    options = {"class": label, "own_class": own, "result": "image"}
    result, _ = ask(served, "counterfactual", "large", **options)
    values = SimpleITK.GetArrayFromImage(result).astype(int)
    original = np.asarray(Image.open(served.studies / "large.png")).astype(int)
    assert np.array_equal(values[:, :14], original[:, :14])
    assert 0 < abs(values - original)[:, 20:70].mean() < 30


def test_generated_study_is_the_image_of_the_python_api_and_only_opened_if_asked_for(served, tmp_path):
    label = served.model.class_names[1]
    empty, answer = ask(served, "generate", "plain", **{"class": label}, seed=5)
    assert answer["study"] == f"synthetic_{label}_5"
    assert SimpleITK.GetArrayFromImage(empty).max() == 0
    file = served.studies / f"{answer['study']}.png"
    expected = np.rint(served.model.sample(label, 1, 5)[0].numpy() * 255)
    assert np.array_equal(np.rint(read_image(file) * 255), expected)
    assert marked_synthetic([file]) == [str(file)]
    note = json.loads(Image.open(file).info["Comment"])
    assert (note["class"], note["weights_sha256"]) == (label, served.model.weights_sha256)
    assert "edit" not in note
    _, again = ask(served, "generate", "plain", **{"class": label}, seed=5)
    assert again["study"] == answer["study"]
    opened = {served.client.next_sample("random", {})["id"] for _ in range(5)}
    assert len(opened) == 5
    assert not [name for name in opened | {served.client.next_sample("first", {})["id"]} if "synthetic" in name]
    assert served.client.next_sample("synthetic", {})["id"] == answer["study"]
    assert "shows another image" in refused(
        served, "generate", "plain", **{"class": label}, seed=5, num_inference_steps=2
    )


@pytest.mark.parametrize("study", FILES)
def test_counterfactual_becomes_a_study_on_request_marked_as_edited(served, study, tmp_path):
    own, label = served.model.class_names
    _, answer = ask(served, "counterfactual", study, **{"class": label}, own_class=own, save_image=True)
    assert answer["study"] == f"edited_counterfactual_{label}_{study}"
    (file,) = served.studies.glob(f"{answer['study']}.*")
    expected = editing.counterfactual(served.model, seen(served, study), label, own)[0]
    assert read_image(file) == pytest.approx(expected.numpy(), abs=0.51 / 255)
    assert marked_synthetic([file]) == [str(file)]
    if study != "plain":
        assert_same_geometry(SimpleITK.ReadImage(str(file)), served.studies / FILES[study])


def test_label_that_was_submitted_before_is_inpainted(served, tmp_path):
    mask = np.zeros(SIZE, np.uint8)
    mask[2:6, 2:6] = 1
    Image.fromarray(mask).save(tmp_path / "plain.png")
    assert "needs a label" in refused(served, "inpaint", "large")
    served.client.save_label("plain", str(tmp_path / "plain.png"))
    result, answer = ask(served, "inpaint", "plain", seed=1)
    assert np.array_equal(SimpleITK.GetArrayFromImage(result), mask)
    assert answer["study"].startswith("edited_inpaint_")
    assert answer["study"].endswith("_plain")


def test_uploaded_image_is_a_study_too(served, tmp_path):
    file, _ = served.client.infer(
        "counterfactual", "", table(served, "counterfactual"), file=str(served.studies / "plain.png")
    )
    expected, _ = ask(served, "counterfactual", "plain")
    assert np.array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(file)), SimpleITK.GetArrayFromImage(expected))
    session = served.client.create_session(str(served.studies / "plain.png"))["session_id"]
    file, _ = served.client.infer("counterfactual", "", table(served, "counterfactual"), session_id=session)
    assert np.array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(file)), SimpleITK.GetArrayFromImage(expected))


def test_bad_requests_are_answered_in_sentences(served, tmp_path):
    assert "notes.png" in refused(served, "counterfactual", "notes")
    assert "Modality CT" in refused(served, "classify", "ct")
    assert "class 'dog' is unknown: choose one of other" in refused(
        served, "counterfactual", "plain", **{"class": "dog"}
    )
    assert "strength must be above 0 and at most 1" in refused(served, "counterfactual", "plain", strength=0)
    assert "strength must be above 0 and at most 1" in refused(served, "anomaly", "plain", strength="1.5")
    assert "strength must be a number, received 'much'" in refused(served, "anomaly", "plain", strength="much")
    assert "study 'missing' does not exist" in refused(served, "classify", "missing", status=404)
    assert "does not exist" in refused(served, "classify", str(served.folder / "server.log"), status=404)
    assert "result_extension" in refused(served, "anomaly", "plain", result_extension=".xyz")
    assert "must be sent as a file" in refused(served, "inpaint", "plain", label=str(served.studies / "plain.png"))
    Image.fromarray(np.ones((9, 9), np.uint8)).save(tmp_path / "mask.png")
    text = refused(served, "inpaint", "plain", label_in=str(tmp_path / "mask.png"))
    assert "label has 9x9 pixels, but the study 24x16" in text
    (tmp_path / "text.nrrd").write_text("no image")
    assert "cannot be read" in refused(served, "inpaint", "plain", label_in=str(tmp_path / "text.nrrd"))


def test_unknown_task_strategy_and_broken_parameters_are_answered_in_sentences(served):
    address = f"http://{LOCAL}:{served.port}"
    answer = requests.post(f"{address}/infer/segment?image=plain", timeout=60)
    assert (answer.status_code, answer.json()["detail"][:27]) == (400, "model 'segment' is unknown:")
    answer = requests.post(f"{address}/infer/classify?image=plain", data={"params": "{"}, timeout=60)
    assert (answer.status_code, answer.json()["detail"][:22]) == (400, "params must be JSON: E")
    answer = requests.post(f"{address}/activelearning/best", timeout=60)
    assert (answer.status_code, "best" in answer.json()["detail"]) == (400, True)


def test_pages_of_other_sites_cannot_use_the_server(served):
    address = f"http://{LOCAL}:{served.port}"
    for headers in ({"Origin": "https://example.org"}, {"Host": f"example.org:{served.port}"}):
        answer = requests.post(f"{address}/infer/generate?image=plain", headers=headers, timeout=60)
        assert answer.status_code in (400, 403)
        assert "access-control-allow-origin" not in answer.headers
    assert requests.get(f"{address}/info/", headers={"Origin": address}, timeout=60).ok


def test_port_in_use_is_an_error_before_the_model_is_loaded(served):
    command = [sys.executable, "-m", "medfusion_monai", "label", "--model", "missing", "--port", str(served.port)]
    command += ["--studies", str(served.studies)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{served.port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_batch_inference_notes_suggested_classes_and_goes_on_after_a_study_that_is_none(served):
    if served.model.image_channels == 3:
        pytest.skip("one bundle is enough for a process of its own")
    address = f"http://{LOCAL}:{served.port}"
    requests.post(f"{address}/batch/infer/classify", json={"save_label": True}, timeout=60).raise_for_status()
    deadline = time.monotonic() + 600
    while (task := requests.get(f"{address}/batch/infer", timeout=60).json())["status"] in ("SUBMITTED", "RUNNING"):
        assert time.monotonic() < deadline, task
        time.sleep(2)
    assert task["status"] == "DONE", task
    time.sleep(2)  # the server reads what the other process wrote
    info = requests.get(f"{address}/datastore/image/info?image=scan", timeout=60).json()
    found = editing.classify(served.model, seen(served, "scan")).labels[0]
    assert info["suggested_class"] == served.model.class_names[found]
