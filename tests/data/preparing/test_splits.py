"""Splits around a test part of the source; splits of all records are in test_datalist."""

import pytest

from medfusion_monai.data.datalist import DataError
from medfusion_monai.data.preparing.splits import split_around_test


def _records(patients, name="p"):
    return [
        {"image": f"{name}{label}_{patient}_{index}.png", "label": label, "patient": f"{name}{label}_{patient}"}
        for label in (0, 1)
        for patient in range(patients)
        for index in range(2)
    ]


def test_test_part_is_kept_whole_and_the_rest_has_the_ratio_of_the_first_two_fractions():
    splits = split_around_test(_records(30), _records(4, "q"), (0.6, 0.3, 0.1))
    assert splits["test"] == sorted(_records(4, "q"), key=lambda item: item["image"])
    assert [len(splits[name]) for name in ("training", "validation")] == [80, 40]
    patients = [{item["patient"] for item in splits[name]} for name in ("training", "validation")]
    assert not patients[0] & patients[1]


def test_first_ten_shared_patients_are_named():
    with pytest.raises(DataError, match="24 patient") as caught:
        split_around_test(_records(12), _records(12))
    assert str(caught.value).count("p0_") == 10


def test_class_in_one_part_only_is_refused():
    test = [item for item in _records(4, "q") if item["label"] == 0]
    with pytest.raises(DataError, match="label 1: images are in only one"):
        split_around_test(_records(12), test)


def test_fractions_without_training_and_validation_are_refused():
    with pytest.raises(DataError, match="training or validation needs a share"):
        split_around_test(_records(12), _records(4, "q"), (0.0, 0.0, 1.0))
