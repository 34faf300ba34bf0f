"""Room on disks, counted from weights of known size."""

from types import SimpleNamespace

import pytest
from torch import nn

from medfusion_monai.training.preflight import disk
from medfusion_monai.training.preflight.disk import check_disk, latents_bytes, pictures_bytes, snapshots_bytes


def networks(kib):
    """Return networks of this many KiB: 16 * 16 values of 4 bytes each."""
    return nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(kib))


# checkpoints: 3 copies of (1 + 2) * (1 + 3), best 2 * 1; 3 copies of (1 + 2 + 1) * 2; weights 1 + 2 * (1 + 2)
NEEDED = 3 * 3 * 4 + 2 + 3 * 4 * 2 + 1 + 2 * 3


@pytest.fixture
def check(tmp_path, monkeypatch):
    def run(free, **keywords):
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free * 1024))
        monkeypatch.setattr(disk, "in_words", lambda size: f"{size / 1024:g} KiB")
        folders = tmp_path / "runs" / "checkpoints", tmp_path / "models"
        return check_disk(*folders, networks(1), networks(2), networks(3), **keywords)

    return run


def test_what_both_phases_write_is_counted_from_their_weights(check):
    assert check(NEEDED) == f"the run will write {NEEDED} KiB at most, {NEEDED} KiB are free"


def test_disk_without_enough_room_is_refused_with_both_sizes(check, tmp_path):
    words = f"the run will write {NEEDED} KiB (62 KiB in {tmp_path}/runs/checkpoints, 7 KiB in {tmp_path}/models)"
    with pytest.raises(ValueError, match="make room") as caught:
        check(NEEDED - 1)
    assert str(caught.value).startswith(f"{words}, but only {NEEDED - 1} KiB are free: make room, or choose another")


def test_other_files_count_as_well(check, tmp_path):
    assert f"write {NEEDED + 5} KiB" in check(1000, other={str(tmp_path / "runs"): 5 * 1024})


def test_existing_files_are_subtracted(check, tmp_path):
    (tmp_path / "runs" / "checkpoints").mkdir(parents=True)
    for name in ("autoencoder_training.pt", "autoencoder_training.previous.pt"):
        (tmp_path / "runs" / "checkpoints" / name).write_bytes(bytes(12 * 1024))
    assert f"write {NEEDED - 24} KiB" in check(1000)


def test_each_disk_is_compared_on_its_own(check, monkeypatch):
    monkeypatch.setattr(disk, "_disk_of", lambda folder: folder.name)
    both = "the run will write 62 KiB at most, 62 KiB are free; the run will write 7 KiB at most, 62 KiB are free"
    assert check(62) == both


def test_pictures_are_counted_twice_as_file_and_in_tensorboard():
    assert pictures_bytes([10, 20], rows=3, epochs=5, per_row=8) == 2 * 5 * 3 * 8 * 10 * 20 * 3


def test_snapshots_take_two_halves_of_the_unet_each_and_their_averages_are_in_checkpoints(tmp_path):
    needed = 3 * 2 * 2 + (16 + 1) * (2 * 2 // 2 + 1)
    assert snapshots_bytes(tmp_path, 16, networks(1), networks(2)) == needed * 1024
    (tmp_path / "200.pt").write_bytes(bytes(3 * 1024))
    assert snapshots_bytes(tmp_path, 16, networks(1), networks(2)) == (needed - 3) * 1024


def test_latents_take_two_values_of_two_bytes_less_existing_files(tmp_path):
    assert latents_bytes(tmp_path / "none", images=10, channels=8, size=[4, 6], variants=3) == 10 * 3 * 16 * 24 * 2
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "moments.npy").write_bytes(bytes(100))
    assert latents_bytes(tmp_path, 1, 1, [10, 10]) == 400 - 100
    assert latents_bytes(tmp_path, 1, 1, [2, 2]) == 0
