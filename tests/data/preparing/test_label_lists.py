"""Images get the one chosen class that their table lists, or are left out and counted."""

from pathlib import Path

import pytest

from medfusion_monai.data.preparing.label_lists import choose_listed, split_labels, unite_rows
from medfusion_monai.data.preparing.splits import DataError


@pytest.mark.parametrize(
    ("text", "separator", "labels"),
    [
        ("Effusion|Mass", "|", ["Effusion", "Mass"]),
        ("No Finding", "|", ["No Finding"]),
        ("['pleural effusion', ' mass ', \"x\"]", ",", ["pleural effusion", "mass", "x"]),
        ("[]", ",", []),
        ("", "|", []),
        ("a||b", "|", ["a", "b"]),
    ],
)
def test_labels_of_a_cell_are_read(text, separator, labels):
    assert split_labels(text, separator) == labels


def test_rows_of_one_image_are_united():
    rows = [("a", "Mass"), ("b", "No Finding"), ("a", "Effusion")]
    records = [{"image": Path(image), "patient": image, "value": value} for image, value in rows]
    assert unite_rows(Path("t.csv"), records, "|") == [
        {"image": Path("a"), "patient": "a", "labels": ["Mass", "Effusion"]},
        {"image": Path("b"), "patient": "b", "labels": ["No Finding"]},
    ]
    records[2]["patient"] = "c"
    with pytest.raises(DataError, match="rows of image 'a' have different values of its patient: 'a' and 'c'"):
        unite_rows(Path("t.csv"), records, "|")


def _records(*lists):
    return [{"image": Path(str(number)), "labels": labels.split("|")} for number, labels in enumerate(lists)]


def test_images_with_exactly_one_chosen_label_are_kept():
    records = _records("Mass", "Mass|Hernia", "Mass|Effusion", "Hernia", "Effusion", "Pleural Effusion", "")
    kept, counts = choose_listed(records, ["Effusion", "Mass"])
    assert [(record["image"].name, record["value"]) for record in kept] == [
        ("0", "Mass"),
        ("1", "Mass"),
        ("4", "Effusion"),
    ]
    assert counts == {"unlisted": 3, "ambiguous": 1}


@pytest.mark.parametrize("lists", [["Mass", "mass"], ["Mass", "Mass|Effusion"]])
def test_class_of_which_no_image_is_left_is_named_with_the_labels_found(lists):
    with pytest.raises(DataError, match=r"no image has only \['Effusion'\].*Labels found: 'Mass' \([12] images\)"):
        choose_listed(_records(*lists), ["Effusion", "Mass"])
