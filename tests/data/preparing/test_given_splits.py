"""Splits given by a table."""

import pytest

from medfusion_monai.data.datalist import DataError
from medfusion_monai.data.preparing.given_splits import name_given_splits, split_as_given


def _record(image, split, patient, label=0):
    return {"image": image, "split": split, "patient": patient, "label": label}


def test_usual_names_of_splits_are_understood():
    values = ["train", "Training", "VAL", "valid", "validation", "test", "Testing"]
    assert name_given_splits(values, "fold") == ["training"] * 2 + ["validation"] * 3 + ["test"] * 2


def test_unknown_names_of_splits_are_counted():
    with pytest.raises(DataError, match=r"'fold' has unknown splits: 'a' \(2 rows\), 'b' \(1 rows\)"):
        name_given_splits(["train", "a", "b", "a"], "fold")


def test_records_go_where_they_are_given_in_order():
    records = [_record("c", "test", "3"), _record("b", "training", "2", 1), _record("a", "training", "1")]
    splits = split_as_given(records, ["x", "y"])
    assert {name: [item["image"] for item in items] for name, items in splits.items()} == {
        "training": ["a", "b"],
        "validation": [],
        "test": ["c"],
    }


def test_patient_in_two_given_splits_is_named():
    records = [_record("a", "training", "p"), _record("b", "test", "p"), _record("c", "training", "q")]
    with pytest.raises(DataError, match=r"share 1 patient\(s\): 'p' in test and training"):
        split_as_given(records, ["x"])


def test_class_without_training_images_is_refused():
    records = [_record("a", "training", "p"), _record("b", "test", "q", label=1)]
    with pytest.raises(DataError, match=r"no training images of classes \['y'\]"):
        split_as_given(records, ["x", "y"])
