"""Posteriors on disk: complete or absent, and only of the requested identity."""

import errno
import json
import logging
import os
import pickle
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose, Lambdad
from torch import nn
from torch.utils.data import DataLoader

from medfusion_monai.data.reading.transforms import ReadImaged, ResizeCenterCropd
from medfusion_monai.data.training import latent_store as module
from medfusion_monai.data.training.latent_identity import (
    describe_transforms,
    differences,
    files_digest,
    latent_identity,
)
from medfusion_monai.data.training.latent_store import LatentStore

SHAPE = (4, 3, 2)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "ENTRIES_PER_SHARD", 4)


def identity_of(weights="a", **changes):
    facts = {"format": "medfusion latents 1", "weights": weights, "images": "b", "flips": [], "preprocessing": {}}
    return {**facts, **changes}


def moments_of(entries):
    """Make values exact in float16, different in each entry."""
    return np.stack([np.arange(24, dtype=np.float32).reshape(SHAPE) + 32 * number for number in entries])


def open_store(folder, count=10, **identity):
    return LatentStore(folder, identity_of(**identity), list(range(count)), SHAPE)


def fill(store):
    for number in store.prepare():
        store.write(number, moments_of(store.entries(number)))
    return store


def test_entries_are_read_as_they_were_written(tmp_path):
    fill(open_store(tmp_path))
    store = open_store(tmp_path)
    assert len(store) == 10
    for number in (9, 0, 4, 3, 8):
        item = store[number]
        assert item["moments"].dtype == torch.float32
        assert np.array_equal(item["moments"].numpy(), moments_of([number])[0])
        assert item["label"] == number


def test_what_was_read_can_be_changed_without_changing_the_store(tmp_path):
    store = fill(open_store(tmp_path))
    store[0]["moments"].zero_()
    assert np.array_equal(store[0]["moments"].numpy(), moments_of([0])[0])


def test_values_are_rounded_as_float16_rounds(tmp_path):
    store = open_store(tmp_path, count=1)
    values = np.random.default_rng(0).uniform(-30, 20, (1, *SHAPE)).astype(np.float32)
    store.write(0, values)
    assert np.array_equal(store[0]["moments"].numpy(), values[0].astype(np.float16).astype(np.float32))
    assert store[0]["moments"].numpy() == pytest.approx(values[0], rel=2**-11)


def test_missing_shards_are_those_that_were_not_written(tmp_path):
    store = open_store(tmp_path)
    assert store.prepare() == [0, 1, 2]
    store.write(1, moments_of(store.entries(1)))
    assert open_store(tmp_path).prepare() == [0, 2]


@pytest.mark.parametrize("damage", ["cut", "empty", "no array", "longer", "of another type", "of another shape"])
def test_damaged_shard_is_missing(tmp_path, damage):
    store = fill(open_store(tmp_path))
    path = store.folder / "moments-00001.npy"
    content = path.read_bytes()
    {
        "cut": lambda: path.write_bytes(content[:-1]),
        "empty": lambda: path.write_bytes(b""),
        "no array": lambda: path.write_bytes(b"no array" * 30),
        "longer": lambda: np.save(path, np.zeros((5, *SHAPE), np.float16)),
        "of another type": lambda: np.save(path, np.zeros((4, *SHAPE), np.float32)),
        "of another shape": lambda: np.save(path, np.zeros((4, 4, 2, 3), np.float16)),
    }[damage]()
    assert open_store(tmp_path).prepare() == [1]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 100)])
def test_shard_that_is_lost_after_opening_the_store_is_named_with_what_to_do(tmp_path, damage):
    store = fill(open_store(tmp_path))
    shard = store.folder / "moments-00001.npy"
    damage(shard)
    with pytest.raises(ValueError, match=r"moments-00001\.npy are missing or damaged.*same command"):
        store[5]


def test_large_stores_keep_few_files_open(tmp_path):
    store = LatentStore(tmp_path, identity_of(), [0] * 100_001, SHAPE)
    assert store.shard_count <= 256
    assert sum(len(store.entries(number)) for number in range(store.shard_count)) == 100_001
    assert store.entries(store.shard_count - 1).stop == 100_001


def test_workers_read_what_the_parent_reads(tmp_path):
    store = fill(open_store(tmp_path))
    assert store[5]["label"] == 5  # a file is already open
    batches = list(DataLoader(store, batch_size=5, num_workers=2))
    assert torch.equal(torch.cat([batch["moments"] for batch in batches]), torch.from_numpy(moments_of(range(10))))


def test_pickled_store_holds_no_values_and_reads_them_anew(tmp_path):
    store = fill(open_store(tmp_path, count=1))
    before = len(pickle.dumps(store))
    assert store[0]["label"] == 0
    assert len(pickle.dumps(store)) == before
    assert np.array_equal(pickle.loads(pickle.dumps(store))[0]["moments"].numpy(), moments_of([0])[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, 65_600.0, -1e6])
def test_value_that_float16_cannot_hold_is_refused_by_the_number_of_its_image(tmp_path, value):
    store = open_store(tmp_path, flips=["both"])
    moments = moments_of(store.entries(1))
    moments[3, 0, 1, 1] = value  # entry 7 is the flip of image 3
    with pytest.raises(ValueError, match=r"posterior of image 3 .* is not finite or above 65504"):
        store.write(1, moments)
    assert not (store.folder / "moments-00001.npy").exists()


def test_largest_value_of_float16_is_kept(tmp_path):
    store = open_store(tmp_path, count=1)
    store.write(0, np.full((1, *SHAPE), -65504.0, np.float32))
    assert store[0]["moments"].max() == -65504.0


def test_moments_of_another_shape_are_refused(tmp_path):
    store = open_store(tmp_path, count=1)
    with pytest.raises(ValueError, match=r"moments of shape \(1, 4, 3, 3\) instead of \(1, 4, 3, 2\)"):
        store.write(0, np.zeros((1, 4, 3, 3), np.float32))


# Disk space


def full_disk(monkeypatch, free):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, free))


def test_too_little_room_is_noticed_before_anything_is_encoded(tmp_path, monkeypatch):
    store = open_store(tmp_path, count=50_000)
    full_disk(monkeypatch, 50_000 * 24 * 2 - 1)
    with pytest.raises(ValueError, match="no disk space.* 2.3 MiB more needed, 2.3 MiB free.*--latents_dir") as caught:
        store.prepare()
    assert str(store.folder) in str(caught.value)
    full_disk(monkeypatch, 50_000 * 24 * 2)
    assert len(store.prepare()) == store.shard_count


def test_only_what_is_missing_needs_room(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    store.prepare()
    for number in (0, 2):
        store.write(number, moments_of(store.entries(number)))
    full_disk(monkeypatch, 4 * 24 * 2)
    assert store.prepare() == [1]


@pytest.mark.parametrize(("code", "left"), [(errno.ENOSPC, "9 bytes free"), (errno.EDQUOT, "your quota is used up")])
def test_disk_that_fills_up_while_writing_leaves_whole_shards(tmp_path, monkeypatch, code, left):
    store = open_store(tmp_path)
    store.prepare()
    store.write(0, moments_of(store.entries(0)))

    def save(file, values, allow_pickle):
        file.write(b"half")
        raise OSError(code, os.strerror(code))

    full_disk(monkeypatch, 9)
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", save)
        with pytest.raises(ValueError, match=f"288 bytes more needed, {left}"):
            store.write(1, moments_of(store.entries(1)))
    assert sorted(path.name for path in store.folder.iterdir()) == ["moments-00000.npy", "store.json"]
    assert open_store(tmp_path).missing() == [1, 2]


def test_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"cannot be written to {tmp_path}/file .*choose another --latents_dir"):
        open_store(tmp_path / "file")


def test_complete_store_is_read_from_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    fill(open_store(tmp_path))
    monkeypatch.setattr(module, "renamed_when_whole", lambda path: pytest.fail(f"{path} was written"))
    monkeypatch.setattr(module, "hold", lambda lock: None)
    store = open_store(tmp_path)
    assert store.prepare() == []
    assert store[9]["label"] == 9


# Other stores in the same folder


def test_store_of_other_weights_is_not_used_but_named_and_deleted(tmp_path, caplog):
    old = fill(open_store(tmp_path)).folder
    with caplog.at_level(logging.WARNING):
        store = open_store(tmp_path, weights="other", flips=["both"])
        assert store.prepare() == [0, 1, 2]
    (record,) = caplog.records
    assert 'made from other weights, flips [] instead of ["both"]: not used, and deleted' in record.message
    assert str(old) in record.message
    assert not old.exists()


def test_other_store_that_a_run_uses_stays_until_that_run_has_ended(tmp_path, caplog):
    used = fill(open_store(tmp_path))
    folder = used.folder
    other = fill(open_store(tmp_path, weights="other"))
    assert "kept, since another run may be using them" in caplog.text
    assert used[7]["label"] == 7  # opened only now
    del used
    other.prepare()
    assert not folder.exists()


def test_store_comes_back_by_encoding_again_after_it_was_deleted(tmp_path):
    fill(open_store(tmp_path))
    fill(open_store(tmp_path, weights="other"))
    assert open_store(tmp_path).prepare() == [0, 1, 2]


def test_files_of_others_in_the_folder_stay(tmp_path):
    old = fill(open_store(tmp_path)).folder
    (old / "notes.txt").write_text("mine")
    named = tmp_path / "backup"
    shutil.copytree(old, named)
    stranger = tmp_path / "0123456789abcdef"
    stranger.mkdir()
    (stranger / "store.json").write_text('{"format": "medfusion latents 1"}')
    open_store(tmp_path, weights="other").prepare()
    assert [path.name for path in old.iterdir()] == ["notes.txt"]
    assert len(list(named.iterdir())) == 5
    assert (stranger / "store.json").exists()


def test_beginnings_that_a_killed_run_left_are_deleted_when_they_are_old(tmp_path):
    folder = open_store(tmp_path).folder
    for name in (".moments-00000.npy.17", ".moments-00001.npy.18"):
        (folder / name).write_bytes(b"half")
    os.utime(folder / ".moments-00000.npy.17", (0, 0))
    open_store(tmp_path).prepare()
    assert sorted(path.name for path in folder.iterdir()) == [".moments-00001.npy.18", "store.json"]


def test_what_a_store_was_made_from_stands_beside_it(tmp_path):
    store = fill(open_store(tmp_path))
    assert json.loads((store.folder / "store.json").read_text()) == identity_of()


# The identity of a store


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "images" / name / "frontal.jpg" for name in ("a", "b", "c")]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * (number + 1))
    return [str(path) for path in paths]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4))


def steps(size=(8, 8), **settings):
    return Compose([ReadImaged("image", channels=1), ResizeCenterCropd("image", size, **settings)])


def full_identity(files, **changes):
    facts = {"autoencoder": network(), "flips": [], "preprocessing": steps()}
    return latent_identity(files=files, **{**facts, **changes})


def touch(path):
    found = os.stat(path)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))


def one_weight_changed():
    changed = network()
    changed[0].weight.data[0, 0, 0, 0] += 1e-7
    return changed


def other_groups():
    changed = network()
    changed[1] = nn.GroupNorm(4, 4)
    return changed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (lambda: {"autoencoder": one_weight_changed()}, ["other weights"]),
        (lambda: {"autoencoder": other_groups()}, ["other weights"]),
        (lambda: {"autoencoder": network().double()}, ["other weights"]),
        (lambda: {"flips": ["horizontal"]}, ['flips [] instead of ["horizontal"]']),
        (lambda: {"labels": [0, 1, 1]}, ["other labels"]),
        (
            lambda: {"preprocessing": steps(size=(16, 8))},
            ["1 ResizeCenterCropd.size [8, 8] instead of [16, 8]"],
        ),
        (
            lambda: {"preprocessing": steps(mode="pad"), "flips": ["both"]},
            ['flips [] instead of ["both"]', '1 ResizeCenterCropd.mode "crop" instead of "pad"'],
        ),
    ],
)
def test_difference_is_named(files, changes, words):
    assert differences(full_identity(files), full_identity(files, **changes())) == words


def test_same_things_have_the_same_identity(files):
    assert differences(full_identity(files), full_identity(files)) == []
    assert full_identity(files, flips=("both",)) == full_identity(files, flips=["both"])


@pytest.mark.parametrize("found", [None, [], {"format": "medfusion latents 0"}])
def test_what_is_no_identity_is_another_format(files, found):
    assert differences(found, full_identity(files)) == ["another format"]


@pytest.mark.parametrize("change", ["content", "time", "order", "missing", "name", "fewer"])
def test_changed_images_are_other_images(files, change):
    before = full_identity(files)
    if change == "content":
        Path(files[1]).write_bytes(b"yyyy")
    elif change == "time":
        touch(files[2])
    elif change == "order":
        files.reverse()
    elif change == "missing":
        os.unlink(files[0])
    elif change == "name":
        os.rename(Path(files[0]).parent, Path(files[0]).parents[1] / "d")
        files[0] = files[0].replace("/a/", "/d/")
    else:
        files.pop()
    assert differences(before, full_identity(files)) == ["other images"]


def test_images_in_another_place_are_the_same_images(files, tmp_path):
    before = files_digest(files)
    os.rename(tmp_path / "images", tmp_path / "moved")
    assert files_digest([path.replace("/images/", "/moved/") for path in files]) == before


def test_identity_tells_no_name_and_no_place(files, tmp_path):
    text = json.dumps(full_identity(files))
    assert "frontal" not in text
    assert str(tmp_path) not in text


def test_transforms_are_described_by_what_is_plain_in_them():
    facts = describe_transforms(Compose([ReadImaged("image", channels=3), Lambdad("image", func=abs)]))
    assert facts["0 ReadImaged"] == "medfusion_monai.data.reading.transforms.ReadImaged"
    assert facts["0 ReadImaged.channels"] == 3
    assert facts["0 ReadImaged.modalities"] is None
    assert facts["1 Lambdad"] == "monai.transforms.utility.dictionary.Lambdad"
    assert "abs" in facts.values()
    assert describe_transforms(abs) == {"0 builtin_function_or_method": "abs"}
    json.dumps(facts)


def test_shard_for_which_there_is_no_memory_is_not_said_to_be_damaged(tmp_path, monkeypatch):
    store = fill(open_store(tmp_path))

    def refuse(number):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(store, "_open", refuse)
    with pytest.raises(OSError, match="Cannot allocate memory") as caught:
        store[0]
    assert not isinstance(caught.value, ValueError)
