"""Real images beside generated ones, the training images next to them, and what an audit says of the model."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import CLASSES, save, tiny

import medfusion_monai as mf
from medfusion_monai.audit.fingerprints import fingerprint
from medfusion_monai.audit.guard import CopyGuard
from medfusion_monai.audit.statistics import calibrate
from medfusion_monai.data.datalist import read_datalist
from medfusion_monai.data.pixels import fingerprint as list_fingerprint
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.studio import tasks
from medfusion_monai.studio.audits import audit_verdict
from medfusion_monai.studio.service import Studio

SIZE = (32, 32)
COUNTS = {"training": 12, "validation": 8, "test": 5}


def drawn(seed):
    """A smooth picture of its own, as bytes (64, 64)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6)).astype(np.uint8)
    return Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A prepared data set of 25 images, each of a patient of its own."""
    folder, document, number = tmp_path_factory.mktemp("data"), {"class_names": list(CLASSES)}, 0
    for split, count in COUNTS.items():
        document[split] = []
        for _ in range(count):
            drawn(number).save(folder / f"{number}.png")
            document[split].append({"image": f"{number}.png", "label": number % 2, "patient": f"p{number}"})
            number += 1
    (folder / "datalist.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def weights_of_data(dataset, tmp_path_factory):
    """Weights whose description names the training images of the data set."""
    path = save(tiny(CLASSES, image_size=SIZE), tmp_path_factory.mktemp("model") / "model.pt")
    describe(path, list_fingerprint(read_datalist(dataset, "training")))
    return path


def describe(path, images):
    info = json.loads((path.parent / "model.json").read_text())
    info["training"]["images"] = images
    (path.parent / "model.json").write_text(json.dumps(info))


@pytest.fixture(scope="module")
def studio(weights_of_data, dataset):
    studio = Studio(mf.load(weights_of_data, "cpu"), dataset_dir=dataset)
    yield studio
    studio.close()


def value_of(job):
    assert job.wait(60)
    assert job.error is None
    return job.value


def test_images_of_the_test_split_are_shown_by_class(studio):
    assert (studio.data.split, studio.data.counts) == ("test", [3, 2])
    shown = studio.data.image(1, 0)
    assert shown.shape == (1, *SIZE)
    reduced = np.asarray(drawn(21), np.float32).reshape(32, 2, 32, 2).mean((1, 3)) / 255
    assert np.abs(shown[0].numpy() - reduced).mean() < 0.02


def test_the_nearest_training_image_of_an_altered_copy_is_its_original(studio):
    originals = torch.stack([studio.data.training_image(place) for place in (3, 8)])
    job = tasks.nearest(studio, (0.8 * originals + 0.1).flip(3), number=2)
    for place, found in zip((3, 8), value_of(job), strict=True):
        assert [neighbour.class_name for neighbour in found[:1]] == [CLASSES[place % 2]]
        assert torch.equal(found[0].image, studio.data.training_image(place))
        assert found[0].distance < 0.2 < found[1].distance


def test_later_jobs_do_not_read_the_images_again(studio):
    image = studio.data.image(0, 0)[None]
    value_of(tasks.nearest(studio, image))
    assert studio.data.matcher_steps == 0
    ((first, second, third),) = value_of(tasks.nearest(studio, image))
    assert first.distance <= second.distance <= third.distance


def test_images_that_the_model_was_not_trained_on_are_not_shown_as_its_training_images(
    weights_of_data, dataset, tmp_path
):
    (tmp_path / "model.pt").write_bytes(weights_of_data.read_bytes())
    (tmp_path / "model.json").write_bytes((weights_of_data.parent / "model.json").read_bytes())
    describe(tmp_path / "model.pt", "other")
    other = Studio(mf.load(tmp_path, "cpu"), dataset_dir=dataset)
    job = tasks.nearest(other, other.data.image(0, 0)[None])
    assert job.wait(60)
    assert "the model was trained on other images, or with other labels" in job.error
    other.close()


def test_without_data_nearest_training_images_are_refused(weights_of_data):
    bare = Studio(mf.load(weights_of_data, "cpu"))
    with pytest.raises(ValueError, match="start the studio with --data DIR"):
        tasks.nearest(bare, torch.rand(1, 1, *SIZE))
    bare.close()


def test_data_of_other_classes_is_refused_at_the_start(weights_of_data, dataset, tmp_path):
    document = json.loads((dataset / "datalist.json").read_text())
    (tmp_path / "datalist.json").write_text(json.dumps({**document, "class_names": ["healthy", "glaucoma"]}))
    with pytest.raises(ValueError, match=r"its class_names are \['healthy', 'glaucoma'\]"):
        Studio(mf.load(weights_of_data, "cpu"), dataset_dir=tmp_path)


def audit_of(weights, folder):
    """Write an audit that found nothing, and its guard, and return the folder."""
    folder.mkdir(exist_ok=True)
    rate = {"value": 0.0, "low": 0.0, "high": 0.01, "note": ""}
    found = {
        "rows": [{"copy_rate": rate, "copies": 0, "count": 500, "expected_false_alarms": 0.5}],
        "rate": 0.001,
        "nearer_to_training": {"value": 0.5, "low": 0.4, "high": 0.6},
        "membership": {},
        "repeats": 0,
    }
    repeat = {"checksums": {"model.pt": file_sha256(weights)}}
    (folder / "audit.json").write_text(json.dumps({"audit": found, "sets": [], "warnings": [], "repeat": repeat}))
    return folder


def test_an_audit_beside_the_weights_says_whether_samples_may_be_shared(weights_of_data, dataset):
    folder = audit_of(weights_of_data, weights_of_data.parent / "audit")
    audited = Studio(mf.load(weights_of_data, "cpu"))
    assert audit_verdict(audited).startswith(
        "This audit found nothing that speaks against sharing: no copy among these"
    )
    with pytest.raises(ValueError, match="there is no copy guard"):
        tasks.check_copies(audited, torch.rand(1, 1, *SIZE))
    audited.close()
    for path in folder.iterdir():
        path.unlink()
    assert audit_verdict(Studio(mf.load(weights_of_data, "cpu"))) is None


def test_an_audit_of_other_weights_is_refused_if_named_and_else_left_out(weights_of_data, tmp_path, caplog):
    other = save(tiny(CLASSES, channels=3, image_size=SIZE), tmp_path / "model.pt")
    folder = audit_of(weights_of_data, tmp_path)
    with pytest.raises(ValueError, match="is of other weights"):
        Studio(mf.load(other, "cpu"), audit_dir=folder)
    with caplog.at_level(logging.WARNING):
        assert audit_verdict(Studio(mf.load(other, "cpu"))) is None
    assert "The studio shows no audit" in caplog.text


def test_the_guard_of_an_audit_flags_copies_alone(studio, weights_of_data, tmp_path):
    training = torch.stack([studio.data.training_image(place) for place in range(12)])
    others = torch.stack([studio.data.image(label, place) for label, place in ((0, 0), (0, 1), (1, 0), (1, 1))])
    held_out = torch.rand(60, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    calibration = calibrate(torch.rand(200, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.6)
    CopyGuard(fingerprint(training), fingerprint(held_out), calibration, list(SIZE)).save(
        audit_of(weights_of_data, tmp_path)
    )
    guarded = Studio(mf.load(weights_of_data, "cpu"), audit_dir=tmp_path)
    verdict = value_of(tasks.check_copies(guarded, torch.cat([training[:2] * 0.9, others])))
    assert verdict.copies.tolist() == [True, True, False, False, False, False]
    guarded.close()
