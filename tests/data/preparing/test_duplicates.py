"""Images with equal pixels are kept in one split, or refused if their labels or splits differ."""

import pytest

from medfusion_monai.data.datalist import DataError
from medfusion_monai.data.preparing.duplicates import find_duplicates, link_patients, refuse_contradictions
from medfusion_monai.data.preparing.splits import split_by_patient


def _records(*patients, label=0):
    return [
        {"image": f"{index}.png", "label": label, "patient": patient, "split": "training"}
        for index, patient in enumerate(patients)
    ]


def _with_equal(records, *equal):
    """Give each image pixels of its own, but for groups of indices that are equal."""
    for record in records:
        record["pixels"] = record["image"]
    for indices in equal:
        for index in indices:
            records[index]["pixels"] = f"equal {indices}"
    return records


def test_groups_hold_equal_images_only_in_order():
    records = _records(*"abcdef")[::-1]
    groups = find_duplicates(_with_equal(records, (0, 3), (2, 5, 4)))
    assert [[record["image"] for record in group] for group in groups] == [
        ["0.png", "1.png", "3.png"],
        ["2.png", "5.png"],
    ]


def test_patients_are_linked_through_several_images():
    records = _records("d", "c", "c", "b", "b", "a", "z")
    repeats = link_patients(records, find_duplicates(_with_equal(records, (0, 1), (2, 3), (4, 5))))
    assert repeats == 3
    assert [record["group"] for record in records] == ["a"] * 6 + ["z"]
    assert [record["patient"] for record in records] == ["d", "c", "c", "b", "b", "a", "z"]


def test_linked_patients_are_in_one_split():
    records = [record for label in (0, 1) for record in _records(*(f"{label}-{i}" for i in range(40)), label=label)]
    for index, record in enumerate(records):
        record["image"] = f"{index}.png"
    pairs = [(index, index + 7) for index in range(0, 28, 14)]
    link_patients(records, find_duplicates(_with_equal(records, *pairs)))
    for seed in range(20):
        splits = split_by_patient(records, (0.5, 0.25, 0.25), seed)
        home = {record["image"]: name for name, items in splits.items() for record in items}
        assert all(home[f"{first}.png"] == home[f"{second}.png"] for first, second in pairs)
        assert sum(map(len, splits.values())) == 80


def test_splits_without_duplicates_are_those_of_the_patients():
    records = _records(*(f"p{index // 2}" for index in range(40)))
    expected = split_by_patient(records, seed=3)
    assert link_patients(records, []) == 0
    linked = split_by_patient(records, seed=3)
    assert {name: [item["image"] for item in items] for name, items in linked.items()} == {
        name: [item["image"] for item in items] for name, items in expected.items()
    }


def test_repeats_are_warned_of_with_their_names(caplog):
    records = _records(*"abc")
    link_patients(records, find_duplicates(_with_equal(records, (0, 2))))
    assert "1 image(s) repeat the pixels of another one" in caplog.text
    assert "0.png = 2.png" in caplog.text


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("label", 1, r"different labels:\n  0.png \(healthy\) = 1.png \(sick\)\n"),
        ("split", "test", r"different splits:\n  0.png \(training\) = 1.png \(test\)\n"),
    ],
)
def test_equal_images_with_other_labels_or_splits_are_listed(key, value, said):
    records = _records(*"abc")
    records[1][key] = value
    groups = find_duplicates(_with_equal(records, (0, 1)))
    with pytest.raises(DataError, match=said):
        refuse_contradictions(groups, ["healthy", "sick"])
    records[1][key] = records[0][key]
    refuse_contradictions(groups, ["healthy", "sick"])
