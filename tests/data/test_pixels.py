"""Lists of images are known by their pixels, not by the names of their files."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from medfusion_monai.data.datalist import DataError, read_datalist
from medfusion_monai.data.pixels import digests_of, fingerprint, record_digests, refuse_repeats
from medfusion_monai.data.preparing.folder import prepare_folder
from medfusion_monai.data.reading.transforms import read_and_resize
from medfusion_monai.data.training.readable import ReadableDataset, check_readable


def draw(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16), np.uint8)).save(path)
    return str(path)


def listed(folder, *seeds, labels=(0, 1, 0, 1)):
    return [
        {"image": draw(folder / f"{number}.png", seed), "label": label}
        for number, (seed, label) in enumerate(zip(seeds, labels, strict=False))
    ]


def test_fingerprint_ignores_names_folders_and_order(tmp_path):
    here = listed(tmp_path / "here", 1, 2, 3, 4)
    there = [
        {"image": shutil.copy(item["image"], tmp_path / f"x{n}.png"), "label": item["label"]}
        for n, item in enumerate(here)
    ]
    assert fingerprint(here) == fingerprint(there[::-1])
    orders = [fingerprint(items, ordered=True) for items in (here, there, there[::-1])]
    assert orders[0] == orders[1] != orders[2]
    assert len(fingerprint(here)) == 32


@pytest.mark.parametrize(
    ("seeds", "labels"),
    [((1, 2), (0, 0)), ((1, 2), (1, 0)), ((1, 3), (0, 1)), ((1,), (0,)), ((1, 2, 2), (0, 1, 1))],
    ids=["label", "labels swapped", "other pixels", "fewer", "more"],
)
def test_fingerprint_sees_pixels_and_labels_under_the_same_names(seeds, labels, tmp_path):
    assert fingerprint(listed(tmp_path / "a", 1, 2)) != fingerprint(listed(tmp_path / "b", *seeds, labels=labels))


def test_recorded_checksums_are_those_of_the_files(tmp_path):
    items = listed(tmp_path, 1, 2)
    expected = fingerprint(items)
    record_digests(items, digests_of(items))
    for item in items:
        (tmp_path / item["image"]).unlink()
    assert fingerprint(items) == expected


def test_file_of_a_custom_format_is_known_by_its_bytes(tmp_path):
    for name, content in (("a", b"first"), ("b", b"second"), ("c", b"first")):
        (tmp_path / f"{name}.npz").write_bytes(content)
    first, second, again = digests_of([{"image": str(tmp_path / f"{name}.npz"), "label": 0} for name in "abc"])
    assert first == again != second
    assert first.startswith("file ")


def test_near_gray_file_has_one_checksum_whatever_channels_a_bundle_reads(tmp_path):
    gray = np.random.default_rng(0).integers(0, 250, (8, 8, 1), np.uint8)
    Image.fromarray(np.concatenate([gray, gray + 1, gray + 2], axis=2)).save(tmp_path / "near.png")
    items = [{"image": str(tmp_path / "near.png"), "label": 0}]
    dataset = ReadableDataset(items, read_and_resize([8, 8], 1))
    check_readable([dataset], ["a"])
    assert items[0]["pixels"] == digests_of([{"image": str(tmp_path / "near.png")}])[0]


@pytest.mark.parametrize("unreadable", ["stop", "skip"])
def test_file_with_other_pixels_than_the_datalist_records_cannot_be_used(unreadable, tmp_path, caplog):
    items = listed(tmp_path, 1, 2, 3, 4)
    record_digests(items, digests_of(items))
    draw(tmp_path / "2.png", 5)
    dataset = ReadableDataset(items, read_and_resize([8, 8], 1), unreadable)
    if unreadable == "skip":
        check_readable([dataset], ["a", "b"])
        assert len(dataset) == 3
        assert "2.png: holds other pixels than when the datalist was written" in caplog.text
    else:
        with pytest.raises(DataError, match=r"2\.png: holds other pixels .*\n.*prepare the data again"):
            check_readable([dataset], ["a", "b"])


def splits_of(*entries):
    splits = {"training": [], "validation": []}
    for name, pixels, label in entries:
        splits[name].append({"image": f"{name}{len(splits[name])}.png", "label": label, "pixels": pixels})
    return splits


def test_equal_images_in_one_split_under_one_label_are_allowed():
    refuse_repeats(splits_of(("training", "x", 0), ("training", "x", 0), ("validation", "y", 0)), ["a", "b"])


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([("training", "x", 0), ("validation", "x", 0)], r"different splits.*\n  training0\.png \(training\) = valid"),
        (
            [("training", "x", 0), ("training", "x", 1)],
            r"different labels.*\n  training0\.png \(a\) = training1",
        ),
    ],
)
def test_equal_images_that_contradict_each_other_are_refused(entries, words):
    with pytest.raises(DataError, match=f"occur more than once, with {words}"):
        refuse_repeats(splits_of(*entries), ["a", "b"])


def test_prepared_folder_records_checksums_by_which_a_changed_datalist_is_refused(tmp_path):
    for number in range(8):
        draw(tmp_path / "images" / "ab"[number % 2] / f"{number}.png", number)
    document = prepare_folder(tmp_path / "images", tmp_path, fractions=(0.5, 0.5, 0.0))
    items = read_datalist(tmp_path, "training")
    assert [item["pixels"] for item in items] == digests_of([{"image": item["image"]} for item in items])
    prepare_folder(tmp_path / "images", tmp_path, fractions=(0.5, 0.5, 0.0))  # again: the same datalist
    document["validation"][0]["pixels"] = document["training"][0]["pixels"]
    (tmp_path / "datalist.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"datalist\.json: 1 image\(s\) occur more than once, with different"):
        read_datalist(tmp_path, "training")
