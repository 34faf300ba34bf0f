"""The datalist is read as written, and errors in it are reported."""

import json
import os
import random

import numpy as np
import pytest
from PIL import Image

from medfusion_monai.data.datalist import DataError, missing_files, read_datalist
from medfusion_monai.data.preparing.new_datalist import make_datalist, save_datalist, write_datalist
from medfusion_monai.data.preparing.splits import split_by_patient

CLASSES = ["normal", "enlarged"]


def _records(patients_per_class, images_per_patient=3):
    return [
        {"image": f"{label}_{patient}_{index}.png", "label": label, "patient": f"p{label}_{patient}"}
        for label, patients in enumerate(patients_per_class)
        for patient in range(patients)
        for index in range(images_per_patient)
    ]


@pytest.fixture
def prepared(tmp_path):
    """A folder with four images and their datalist; the test may edit its JSON."""
    items = [{"image": f"images/{name}.png", "label": i % 2, "patient": name} for i, name in enumerate("abcd")]
    (tmp_path / "images").mkdir()
    for item in items:
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / item["image"])
    splits = {"training": items[:2], "validation": items[2:], "test": []}
    write_datalist(tmp_path / "datalist.json", splits, CLASSES, "test", 7)
    return tmp_path


def _edit(folder, change):
    path = folder / "datalist.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_written_items_are_read_with_absolute_paths(prepared):
    items = read_datalist(prepared, "training", CLASSES)
    assert items == [
        {"image": str(prepared.resolve() / "images/a.png"), "label": 0, "patient": "a"},
        {"image": str(prepared.resolve() / "images/b.png"), "label": 1, "patient": "b"},
    ]


def test_counts_source_and_seed_are_beside_the_splits(prepared):
    document = json.loads((prepared / "datalist.json").read_text())
    assert document["counts"]["training"] == {"images": {"normal": 1, "enlarged": 1}, "patients": 2}
    assert (document["class_names"], document["source"], document["seed"]) == (CLASSES, "test", 7)


def test_class_shares_are_those_of_training():
    splits = {"training": _records([3, 1], images_per_patient=1), "validation": _records([0, 5]), "test": []}
    assert make_datalist(splits, CLASSES, "", 0)["class_shares"] == {"normal": 0.75, "enlarged": 0.25}
    assert make_datalist({"training": []}, CLASSES, "", 0)["class_shares"] == {"normal": 0.0, "enlarged": 0.0}


def test_reference_may_hold_images_and_patients_of_the_splits(prepared):
    document = json.loads((prepared / "datalist.json").read_text())
    splits = {name: document[name] for name in ("training", "validation", "test")}
    reference = [document["training"][0], document["validation"][1]]
    document = make_datalist(splits, CLASSES, "", 0, reference=reference, counts={"missing": 3})
    save_datalist(prepared / "datalist.json", document)
    assert [item["patient"] for item in read_datalist(prepared, "reference", CLASSES)] == ["a", "d"]
    assert document["counts"]["reference"] == {"images": {"normal": 1, "enlarged": 1}, "patients": 2}
    assert document["counts"]["missing"] == 3


def test_missing_reference_images_are_counted(prepared):
    _edit(prepared, lambda document: document.update(reference=[{"image": "gone.png", "label": 0}]))
    assert len(read_datalist(prepared, "training")) == 2
    with pytest.raises(DataError, match=r"1 of 1 reference images do not exist.*gone\.png"):
        read_datalist(prepared, "reference")


def test_missing_files_come_in_their_order_among_many(prepared):
    images = [str(prepared / f"images/{name}.png") for name in "abcd"] * 100
    absent = [str(prepared / f"{number}.png") for number in range(250)]
    paths = random.Random(0).sample(images + absent, 650)
    assert missing_files(paths) == [path for path in paths if path in absent]


def test_paths_survive_a_symbolic_link_to_the_folder(prepared, tmp_path_factory):
    other = tmp_path_factory.mktemp("elsewhere") / "link"
    outside = prepared.parent / f"{prepared.name}_outside.png"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(outside)
    _edit(prepared, lambda document: document["training"][0].update(image=f"../{outside.name}"))
    other.symlink_to(prepared)
    assert os.path.samefile(read_datalist(other, "training")[0]["image"], outside)


def test_folder_without_datalist_names_the_way_to_one(tmp_path):
    with pytest.raises(DataError, match="medfusion prepare .*--dataset_dir"):
        read_datalist(tmp_path, "training")
    with pytest.raises(DataError, match="is not a folder"):
        read_datalist(tmp_path / "nowhere", "training")


@pytest.mark.parametrize("text", ["{", "[1, 2]", "\x00\x01"])
def test_file_that_is_no_json_object_is_refused(prepared, text):
    (prepared / "datalist.json").write_text(text)
    with pytest.raises(DataError, match="datalist.json.*JSON"):
        read_datalist(prepared, "training")


@pytest.mark.parametrize("split", ["test", "holdout"])
def test_empty_or_missing_split_lists_the_filled_ones(prepared, split):
    with pytest.raises(DataError, match=f"'{split}'.*training.*validation"):
        read_datalist(prepared, split)


@pytest.mark.parametrize("entry", ["a.png", None, 3])
def test_entry_of_another_split_that_is_no_object_is_named(prepared, entry):
    _edit(prepared, lambda document: document["validation"].append(entry))
    with pytest.raises(DataError, match=r"validation\[2\] is"):
        read_datalist(prepared, "training")


def test_other_split_that_is_no_list_is_named(prepared):
    _edit(prepared, lambda document: document.update(validation={"a.png": 0}))
    with pytest.raises(DataError, match="'validation' is not a list"):
        read_datalist(prepared, "training")


@pytest.mark.parametrize("key", ["image", "label"])
def test_entry_without_key_is_named(prepared, key):
    _edit(prepared, lambda document: document["training"][1].pop(key))
    with pytest.raises(DataError, match=rf"training\[1\].*'{key}'"):
        read_datalist(prepared, "training")


@pytest.mark.parametrize(("label", "said"), [("1", "integer"), (1.0, "integer"), (True, "integer"), (2, "outside")])
def test_label_that_is_no_class_index_is_refused(prepared, label, said):
    _edit(prepared, lambda document: document["training"][1].update(label=label))
    with pytest.raises(DataError, match=said):
        read_datalist(prepared, "training")


def test_negative_label_is_refused_without_class_names(prepared):
    _edit(prepared, lambda document: (document.pop("class_names"), document["training"][0].update(label=-1)))
    with pytest.raises(DataError, match="label -1"):
        read_datalist(prepared, "training")


def test_other_class_names_show_both_lists(prepared):
    with pytest.raises(DataError) as caught:
        read_datalist(prepared, "training", ["enlarged", "normal"])
    assert "['normal', 'enlarged']" in str(caught.value)
    assert "['enlarged', 'normal']" in str(caught.value)
    assert "--class_names" in str(caught.value)
    assert "--classes" in str(caught.value)


def test_missing_files_are_counted(prepared):
    (prepared / "images/a.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 training images do not exist.*a\.png"):
        read_datalist(prepared, "training")


def test_patient_in_two_splits_is_refused(prepared):
    _edit(prepared, lambda document: document["validation"][0].update(patient="a"))
    with pytest.raises(DataError, match="'a' in training and validation"):
        read_datalist(prepared, "training")


def test_no_patient_crosses_splits():
    splits = split_by_patient(_records([20, 30]))
    patients = [{item["patient"] for item in items} for items in splits.values()]
    assert not patients[0] & patients[1]
    assert not patients[0] & patients[2]
    assert not patients[1] & patients[2]
    assert sum(len(items) for items in splits.values()) == 150


def test_split_has_the_asked_shares_of_each_class():
    splits = split_by_patient(_records([20, 30], images_per_patient=1), (0.8, 0.1, 0.1))
    counts = {
        name: [sum(item["label"] == label for item in items) for label in (0, 1)] for name, items in splits.items()
    }
    assert counts == {"training": [16, 24], "validation": [2, 3], "test": [2, 3]}


def test_split_does_not_depend_on_the_order_but_on_the_seed():
    records = _records([20, 30])
    shuffled = random.Random(1).sample(records, len(records))
    assert split_by_patient(records, seed=3) == split_by_patient(shuffled, seed=3)
    assert split_by_patient(records, seed=3) != split_by_patient(records, seed=4)


def test_small_class_is_in_every_split():
    splits = split_by_patient(_records([50, 3], images_per_patient=1))
    assert [sum(item["label"] for item in items) for items in splits.values()] == [1, 1, 1]


def test_class_with_too_few_patients_is_named():
    with pytest.raises(DataError, match="label 1 has 2 patient"):
        split_by_patient(_records([50, 2]))
    assert split_by_patient(_records([50, 2]), (0.9, 0.0, 0.1))["validation"] == []


def test_patient_counts_for_the_highest_label():
    records = _records([10, 3], images_per_patient=1)
    records += [{"image": f"early_{i}.png", "label": 0, "patient": f"p1_{i}"} for i in range(3)]
    splits = split_by_patient(records)
    assert all(sum(item["label"] for item in items) == 1 for items in splits.values())


@pytest.mark.parametrize("fractions", [(0.8, 0.1), (0.8, 0.3, -0.1), (0.5, 0.1, 0.1)])
def test_fractions_that_do_not_sum_to_one_are_refused(fractions):
    with pytest.raises(DataError, match="sum to 1"):
        split_by_patient(_records([20, 20]), fractions)


def test_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        write_datalist(tmp_path / "file" / "sub" / "datalist.json", {"training": []}, CLASSES, "", 0)


def test_failed_write_leaves_the_old_datalist_and_no_remains(prepared, monkeypatch):
    before = (prepared / "datalist.json").read_text()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DataError, match="No space left"):
        write_datalist(prepared / "datalist.json", {"training": []}, CLASSES, "", 0)
    assert (prepared / "datalist.json").read_text() == before
    assert sorted(path.name for path in prepared.iterdir()) == ["datalist.json", "images"]


def test_name_that_is_not_in_utf8_is_refused():
    splits = {"training": [{"image": "caf\udce9.png", "label": 0, "patient": "p"}]}
    with pytest.raises(DataError, match="1 names are not in UTF-8"):
        make_datalist(splits, CLASSES, "", 0)


def test_class_that_is_not_in_every_split_is_refused():
    records = [{"image": f"{number}.png", "label": 1, "patient": str(number)} for number in range(10)]
    records.append({"image": "other.png", "label": 0, "patient": "0"})
    with pytest.raises(DataError, match="split has no images of label 0"):
        split_by_patient(records)
    assert split_by_patient(records, (1.0, 0.0, 0.0))["test"] == []


def test_fractions_that_are_no_numbers_are_refused():
    with pytest.raises(DataError, match="sum to 1"):
        split_by_patient(_records([20, 20]), (float("nan"),) * 3)


def test_images_whose_patient_is_null_are_patients_of_their_own(prepared):
    document = json.loads((prepared / "datalist.json").read_text())
    for split in ("training", "validation", "test"):
        for item in document[split]:
            item["patient"] = None
    (prepared / "datalist.json").write_text(json.dumps(document))
    assert all(item["patient"] != "None" for item in read_datalist(prepared, "training"))


@pytest.mark.parametrize("names", [[], ["normal", ""], ["normal", 2], ["normal", "normal"], ["normal", "a#b"], "ab"])
def test_class_names_that_cannot_be_used_are_refused(prepared, names):
    _edit(prepared, lambda document: document.update(class_names=names))
    with pytest.raises(DataError, match=r"datalist\.json: class_names"):
        read_datalist(prepared, "training")
    with pytest.raises(DataError, match="class_names"):
        make_datalist({"training": []}, names, "", 0)


@pytest.mark.parametrize("label", [7, "0", [0]])
def test_entry_of_another_split_with_an_invalid_label_is_named(prepared, label):
    _edit(prepared, lambda document: document["validation"][1].update(label=label, pixels="x"))
    with pytest.raises(DataError, match=r"validation\[1\] .*label"):
        read_datalist(prepared, "training")
