"""The lists of a training, also those written by hand without checksums, hold what it can use."""

import copy
import json

import numpy as np
import pytest
from PIL import Image

from medfusion_monai.data.datalist import DataError
from medfusion_monai.training.training_images import TrainingImages

CLASSES = ["normal", "enlarged"]
HOME = {"a": "training", "b": "training", "c": "validation", "d": "test", "e": "test"}


def _write(folder, seeds, labels, **document):
    """Write an image and an entry per name; equal seeds are equal pixels, in files of another compression."""
    splits = {"training": [], "validation": [], "test": []}
    for number, (name, split) in enumerate(HOME.items()):
        pixels = np.random.default_rng(seeds[name]).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png", compress_level=number)
        splits[split].append({"image": f"{name}.png", "label": labels[name]})
    (folder / "datalist.json").write_text(json.dumps({**splits, **document}))
    return TrainingImages(str(folder), CLASSES, [8, 8])


SEEDS = {name: number for number, name in enumerate(HOME)}
LABELS = {"a": 0, "b": 1, "c": 0, "d": 0, "e": 1}


def test_list_written_by_hand_is_accepted_and_identified(tmp_path):
    images = _write(tmp_path, SEEDS, LABELS)
    images.check_choices()
    images.identify()
    assert images.shares is None
    assert all(item["pixels"] for item in images.training + images.validation)


@pytest.mark.parametrize(
    ("name", "other", "words"),
    [
        ("c", "a", r"different splits.*\n.*a\.png \(training\) = .*c\.png \(validation\)"),
        ("d", "a", r"different splits.*\n.*a\.png \(training\) = .*d\.png \(test\)"),
        ("d", "c", r"different splits.*\n.*c\.png \(validation\) = .*d\.png \(test\)"),
        ("b", "a", r"different labels.*\n.*a\.png \(normal\) = .*b\.png \(enlarged\)"),
        ("e", "d", r"different labels.*\n.*d\.png \(normal\) = .*e\.png \(enlarged\)"),
    ],
)
def test_image_in_two_splits_or_classes_is_refused_without_recorded_checksums(tmp_path, name, other, words):
    images = _write(tmp_path, {**SEEDS, name: SEEDS[other]}, LABELS)
    for _ in range(2):  # who tries again is refused again
        with pytest.raises(DataError, match=words):
            images.identify()


def test_missing_images_of_the_test_do_not_stop_a_training(tmp_path):
    images = _write(tmp_path, SEEDS, LABELS)
    (tmp_path / "d.png").unlink()
    again = copy.copy(images)
    images.identify()
    (tmp_path / "e.png").write_bytes((tmp_path / "b.png").read_bytes())
    with pytest.raises(DataError, match=r"b\.png \(training\) = .*e\.png \(test\)"):
        again.identify()


def test_missing_test_split_does_not_stop_a_training(tmp_path):
    images = _write(tmp_path, SEEDS, LABELS)
    document = json.loads((tmp_path / "datalist.json").read_text())
    del document["test"]
    (tmp_path / "datalist.json").write_text(json.dumps(document))
    images.identify()
    assert len(images.training) == 2


def test_class_without_training_images_is_refused_by_name(tmp_path):
    images = _write(tmp_path, SEEDS, {**LABELS, "b": 0})
    with pytest.raises(DataError, match=r"classes \['enlarged'\] have no training images"):
        assert images.shares
    images.class_shares = [1.0, 0.0]
    assert images.shares == [1.0, 0.0]


@pytest.mark.parametrize("names", [[], ["a", ""], ["a", 1], ["a", "a"], "ab", ["a", "b#c"]])
def test_class_names_that_cannot_be_used_are_refused(tmp_path, names):
    with pytest.raises(ValueError, match="class_names"):
        TrainingImages(str(tmp_path), names, [8, 8]).check_choices()
