"""Files that go bad before and during a training."""

import logging
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from medfusion_monai.data.datalist import DataError
from medfusion_monai.data.reading import images
from medfusion_monai.data.reading.transforms import ReadImaged
from medfusion_monai.data.training.readable import ReadableDataset, check_readable
from medfusion_monai.data.training.stream import SeededDataset, StreamSampler

READ = ReadImaged("image", channels=1)


@pytest.fixture
def items(tmp_path):
    """Ten files of different gray: seven of class 0, three of class 1."""
    for number in range(10):
        Image.fromarray(np.full((4, 4), 20 * number, np.uint8)).save(tmp_path / f"{number}.png")
    return [{"image": str(tmp_path / f"{number}.png"), "label": int(number >= 7)} for number in range(10)]


def spoil(*spoilt):
    for item in spoilt:
        with open(item["image"], "wb") as file:
            file.write(b"no image")


def grays(dataset):
    return [round(float(dataset[index]["image"].mean()) * 255 / 20) for index in range(len(dataset))]


def dataset_of(items, unreadable="skip", cache_num=0):
    return ReadableDataset(items, READ, unreadable, cache_num=cache_num)


@pytest.mark.parametrize("cache_num", [0, 4, 10])
@pytest.mark.parametrize("unreadable", ["stop", "skip"])
def test_readable_files_are_given_as_they_are(items, cache_num, unreadable):
    dataset = dataset_of(items, unreadable, cache_num)
    assert grays(dataset) == list(range(10))
    assert [dataset[index]["label"] for index in range(10)] == [0] * 7 + [1] * 3


@pytest.mark.parametrize("cache_num", [0, 10])
def test_bad_file_stops_with_its_path(items, cache_num):
    spoil(items[3])
    with pytest.raises(DataError, match=r"3\.png: is not an image"):
        dataset_of(items, "stop", cache_num)[3]


def test_bad_file_stops_a_worker_with_its_path_in_the_last_line(items):
    spoil(items[3])
    with pytest.raises(DataError) as caught:
        list(DataLoader(dataset_of(items, "stop"), num_workers=1))
    assert "3.png: is not an image" in str(caught.value).splitlines()[-1]


@pytest.mark.parametrize("cache_num", [0, 4, 10])
def test_another_image_of_the_class_takes_the_place_of_a_bad_file(items, cache_num):
    spoil(items[3], items[8])
    dataset = dataset_of(items, cache_num=cache_num)
    seen = grays(dataset)
    assert [seen[index] for index in (0, 1, 2, 4, 5, 6, 7, 9)] == [0, 1, 2, 4, 5, 6, 7, 9]
    assert seen[3] in (0, 1, 2, 4, 5, 6)
    assert seen[8] in (7, 9)
    assert [dataset[index]["label"] for index in range(10)] == [0] * 7 + [1] * 3


def test_stand_in_is_the_same_in_every_run(items):
    spoil(items[3], items[4], items[5])
    first, second = dataset_of(items), dataset_of(items, cache_num=10)
    assert list(reversed([grays([second[index]])[0] for index in reversed(range(10))])) == grays(first)


def test_row_of_bad_files_has_different_stand_ins(items):
    spoil(*items[:4])
    many = [dict(items[index % 7]) for index in range(4)] * 10 + items[4:7]
    assert set(grays(dataset_of(many))[:40]) == {4, 5, 6}


@pytest.mark.parametrize("cache_num", [0, 10])
def test_each_bad_file_is_warned_of_once_and_counted(items, cache_num, caplog):
    spoil(items[3], items[8])
    dataset = dataset_of(items, cache_num=cache_num)
    for _ in range(3):
        grays(dataset)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "3.png" in warnings[0]
    assert "(2 so far in this process)" in warnings[1]
    assert "8.png" in warnings[1]


def test_class_without_a_readable_image_stops_and_is_named(items):
    spoil(*items[7:])
    with pytest.raises(DataError, match=r"no image of label 1 can be read, e\.g\. .*8\.png: is not an image"):
        dataset_of(items)[8]


def test_other_errors_are_not_taken_for_bad_files(items):
    def fail(item):
        raise ZeroDivisionError("a mistake in a transform")

    with pytest.raises(RuntimeError) as caught:
        ReadableDataset(items, fail, "skip", cache_num=0)[0]
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_file_that_goes_bad_under_a_stream_changes_no_other_position(items):
    order = SeededDataset(dataset_of(items), seed=1)
    before = [(float(order[position]["image"].mean()), order[position]["label"]) for position in range(30)]
    spoil(items[8])
    places = [position for position in range(30) if order.order(position // 10)[position % 10] == 8]
    batches = list(islice(DataLoader(order, batch_sampler=StreamSampler(5), num_workers=2), 6))
    after = torch.cat([batch["image"].mean(dim=(1, 2, 3)) for batch in batches]).tolist()
    labels = torch.cat([batch["label"] for batch in batches]).tolist()
    assert [position for position in range(30) if after[position] != pytest.approx(before[position][0])] == places
    assert labels == [label for _, label in before]


@pytest.mark.parametrize("cache_num", [0, 6, 10])
def test_start_leaves_out_bad_files_and_lists_them(items, cache_num, caplog):
    spoil(items[3], items[8])
    dataset = dataset_of(items, cache_num=cache_num)
    check_readable([dataset], ["a", "b"])
    assert "2 of 10 images cannot be used and are left out" in caplog.text
    assert "3.png: is not an image" in caplog.text
    assert dataset.data == [item for index, item in enumerate(items) if index not in (3, 8)]
    assert grays(dataset) == [0, 1, 2, 4, 5, 6, 7, 9]


def test_start_counts_over_all_data_sets(items, caplog):
    spoil(items[3], items[8])
    check_readable([dataset_of(items[:5]), dataset_of(items[5:])], ["a", "b"])
    assert "2 of 10 images cannot be used and are left out" in caplog.text


def test_start_lists_the_first_ten_of_many(items, tmp_path, caplog):
    missing = [{"image": str(tmp_path / f"no{number}.png"), "label": 0} for number in range(13)]
    check_readable([dataset_of([*items, *missing])], ["a", "b"])
    assert caplog.text.count("does not exist") == 10
    assert "... and 3 more" in caplog.text


def test_start_stops_at_bad_files_unless_told_to_skip(items):
    check_readable([dataset_of(items, "stop")], ["a", "b"])
    spoil(items[3])
    with pytest.raises(DataError, match="1 of 10 images cannot be used"):
        check_readable([dataset_of(items, "stop")], ["a", "b"])


def test_class_that_is_emptied_at_the_start_is_named(items):
    spoil(*items[7:])
    with pytest.raises(DataError, match=r"\['sick'\] have no readable images left in a split \(3 unusable images"):
        check_readable([dataset_of(items)], ["well", "sick"])


@pytest.fixture
def decoded(monkeypatch):
    """Counts how often each file is decoded."""
    counts, read = Counter(), images.read_image

    def count(path, *arguments):
        counts[Path(path).name] += 1
        return read(path, *arguments)

    monkeypatch.setattr("medfusion_monai.data.reading.transforms.read_image", count)
    return counts


def test_image_that_stays_in_memory_is_decoded_once(items, decoded):
    dataset = dataset_of(items, cache_num=4)
    check_readable([dataset], ["a", "b"])
    assert set(decoded.values()) == {1}
    for _ in range(2):
        grays(dataset)
    assert [decoded[f"{number}.png"] for number in range(10)] == [1] * 4 + [3] * 6


def test_image_in_memory_counts_only_while_its_file_is_as_it_was(items, decoded):
    dataset = dataset_of(items, cache_num=10)
    dataset.keep()
    Image.fromarray(np.full((4, 4), 200, np.uint8)).save(items[2]["image"])
    assert grays(dataset)[2] == 2
    assert grays(dataset.as_files_are()) == [0, 1, 10, *range(3, 10)]
    assert decoded["2.png"] == 2
    assert decoded["3.png"] == 1


@pytest.mark.parametrize("value", ["ignore", True, None, "null"])
def test_unknown_policy_is_refused(value):
    with pytest.raises(ValueError, match="unreadable must be stop .* or skip"):
        ReadableDataset([], READ, value)
