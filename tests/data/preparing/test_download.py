"""The reference batch, which all sources draw in the same way."""

import os
import random

import numpy as np
import pytest
from PIL import Image

from medfusion_monai.data.datalist import DataError
from medfusion_monai.data.preparing.download import Download, draw_reference, walk_images, write_download


def _records(per_class):
    return [
        {"image": f"{label}_{number:03d}.png", "label": label, "patient": str(number)}
        for label, count in enumerate(per_class)
        for number in range(count)
    ]


def _labels(records):
    return [sum(record["label"] == label for record in records) for label in (0, 1)]


def test_reference_has_equal_numbers_up_to_the_asked_size():
    assert _labels(draw_reference(_records([50, 20]), 2, 15, seed=0)) == [15, 15]
    assert _labels(draw_reference(_records([50, 20]), 2, 30, seed=0)) == [20, 20]
    assert draw_reference(_records([50]), 2, 30, seed=0) == []


def test_reference_depends_on_the_seed_and_not_on_the_order():
    records = _records([50, 20])
    shuffled = random.Random(0).sample(records, len(records))
    assert draw_reference(shuffled, 2, 10, seed=3) == draw_reference(records, 2, 10, seed=3)
    assert draw_reference(records, 2, 10, seed=3) != draw_reference(records, 2, 10, seed=4)


def test_records_that_are_not_comparable_are_passed_over():
    records = [{**record, "comparable": record["image"] > "0_040"} for record in _records([50, 20])]
    drawn = draw_reference(records, 2, 20, seed=0)
    assert _labels(drawn) == [10, 10]
    assert all(record["comparable"] for record in drawn)


def test_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "shut").mkdir()
    (tmp_path / "a.png").write_bytes(b"")
    assert list(walk_images(tmp_path, (".png",))) == [("", "a.png")]
    scandir = os.scandir

    def fail(folder):
        if str(folder).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(DataError, match="shut' cannot be listed: Permission denied"):
        list(walk_images(tmp_path, (".png",)))


def _download(folder, factor):
    records = _records([20, 20])
    pixels = np.arange(400, dtype=np.uint16).reshape(20, 20)
    for index, record in enumerate(records):
        Image.fromarray(np.roll(pixels, index) * factor).save(folder / record["image"])
    return Download(folder, records, ("a", "b"), 1, "a test", 10, {})


def test_sample_of_a_download_is_shown_and_its_problems_are_warned_of(tmp_path, caplog):
    caplog.set_level("INFO")
    download = _download(tmp_path, 160)
    (tmp_path / download.records[0]["image"]).write_bytes(b"no image")
    write_download(download, tmp_path / "out", (0.8, 0.1, 0.1), 0)
    assert "1 of a sample of 24 images cannot be used" in caplog.text
    assert "brightness 0.05 to 0.93" in caplog.text
    assert Image.open(tmp_path / "out" / "contact_sheet.png").size == (8 * 130, 3 * 130)


@pytest.mark.parametrize("check", [False, True])
def test_download_in_a_small_part_of_its_range_is_an_error(tmp_path, check):
    with pytest.raises(DataError, match="images are dark: their values are up to 399 of 65535"):
        write_download(_download(tmp_path, 1), tmp_path / "out", (0.8, 0.1, 0.1), 0, check=check)
    assert not (tmp_path / "out").exists()
