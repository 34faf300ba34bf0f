"""The list of checksums beside weights: read, checked, and kept from refusing what a training writes."""

import hashlib
import shutil
import subprocess

import pytest
import torch
from torch import nn

from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.weights.checksums import CHECKSUMS, checksums_text, expected_sha256, forget_checksum
from medfusion_monai.weights.model_info import read_model_info, write_model_info
from medfusion_monai.weights.state_dict import check_listed, load_weights, save_safetensors, save_weights

OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def models(tmp_path):
    """A folder of weights in both formats, what they were trained with, and their checksums."""
    torch.manual_seed(0)
    save_weights(nn.Linear(2, 3), tmp_path / "model.pt")
    save_safetensors(nn.Linear(2, 3), tmp_path / "model.safetensors")
    write_model_info(tmp_path / "model.pt", {"version": "1"})
    (tmp_path / CHECKSUMS).write_text(checksums_text(tmp_path.iterdir()))
    return tmp_path


def test_list_is_that_of_a_published_example(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"abc")
    (tmp_path / "a.txt").write_bytes(b"abc")
    text = checksums_text([tmp_path / "b.txt", tmp_path / "a.txt"])
    assert text == f"{OF_ABC}  a.txt\n{OF_ABC}  b.txt\n"


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum")
def test_sha256sum_checks_the_list(models):
    command = ["sha256sum", "--check", "--strict", CHECKSUMS]
    assert subprocess.run(command, cwd=models, capture_output=True, check=False).returncode == 0
    (models / "model.json").write_text("{}")
    assert subprocess.run(command, cwd=models, capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize(
    "line", [f"{OF_ABC}  model.pt", f"{OF_ABC} *model.pt", f"{OF_ABC}  ./model.pt", f"\n{OF_ABC.upper()}  model.pt\n"]
)
def test_checksum_is_read_as_sha256sum_writes_it(tmp_path, line):
    (tmp_path / CHECKSUMS).write_text(f"{line}\n{'0' * 64}  old model.pt\n")
    assert expected_sha256(tmp_path / "model.pt") == OF_ABC


def test_file_that_no_list_names_has_no_checksum(models):
    (models / "other.pt").touch()
    assert expected_sha256(models / "other.pt") is None
    assert expected_sha256(models.parent / "model.pt") is None


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_weights_with_their_checksum_are_loaded(models, name):
    load_weights(nn.Linear(2, 3), models / name)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_one_changed_bit_is_refused_with_both_checksums_and_what_to_do(models, name):
    content = bytearray((models / name).read_bytes())
    before = hashlib.sha256(content).hexdigest()[:12]
    content[len(content) // 2] ^= 1
    (models / name).write_bytes(content)
    after = hashlib.sha256(content).hexdigest()[:12]
    with pytest.raises(WeightsError, match=rf"{name} is damaged or was replaced.*{after}.*{before}.*delete its line"):
        load_weights(nn.Linear(2, 3), models / name)


def test_exchanged_settings_of_a_training_are_refused(models):
    (models / "model.json").write_text('{"version": "2"}')
    with pytest.raises(WeightsError, match=r"model\.json is damaged or was replaced"):
        read_model_info(models / "model.pt")


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"\xff\xfe", b"abc  model.pt"])
def test_list_that_is_none_is_named_with_its_line(models, content):
    (models / CHECKSUMS).write_bytes(content)
    with pytest.raises(WeightsError, match=r"checksums\.sha256 cannot be read: line 1 is not a checksum"):
        load_weights(nn.Linear(2, 3), models / "model.pt")


def test_new_weights_in_the_place_of_listed_ones_are_loaded_and_the_others_stay_listed(models):
    save_weights(nn.Linear(2, 3), models / "model.pt")
    load_weights(nn.Linear(2, 3), models / "model.pt")
    assert expected_sha256(models / "model.pt") is None
    assert [line[66:] for line in (models / CHECKSUMS).read_text().splitlines()] == ["model.json", "model.safetensors"]
    check_listed(models / "model.safetensors")


def test_list_of_nothing_is_removed(models):
    save_weights(nn.Linear(2, 3), models / "model.pt")
    save_safetensors(nn.Linear(2, 3), models / "model.safetensors")
    write_model_info(models / "model.pt", {"version": "2"})
    assert not (models / CHECKSUMS).exists()
    assert read_model_info(models / "model.pt") == {"version": "2"}


def test_weights_that_could_not_be_written_leave_the_checksum_of_the_old_ones(models, monkeypatch):
    def fail(state, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        save_weights(nn.Linear(2, 3), models / "model.pt")
    assert expected_sha256(models / "model.pt") is not None
    check_listed(models / "model.pt")


def test_checksum_is_forgotten_before_the_new_file_takes_its_place(models, monkeypatch):
    """A kill between the two leaves the old file, which nothing refuses."""

    def kill(path):
        forget_checksum(path)
        raise KeyboardInterrupt

    monkeypatch.setattr("medfusion_monai.weights.state_dict.forget_checksum", kill)
    before = (models / "model.pt").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        save_weights(nn.Linear(2, 3), models / "model.pt")
    assert (models / "model.pt").read_bytes() == before
    load_weights(nn.Linear(2, 3), models / "model.pt")


def test_invalid_line_of_a_list_stays_when_a_file_is_forgotten(models):
    listed = models / CHECKSUMS
    listed.write_bytes(b"\xff of someone else\n" + listed.read_bytes())
    forget_checksum(models / "model.pt")
    assert listed.read_bytes().startswith(b"\xff of someone else\n")
    assert b"model.pt" not in listed.read_bytes()


def test_line_that_names_a_file_in_its_folder_is_forgotten(models):
    (models / CHECKSUMS).write_text(f"{OF_ABC}  ./model.pt\n{OF_ABC}  model.json\n")
    save_weights(nn.Linear(2, 3), models / "model.pt")
    assert (models / CHECKSUMS).read_text() == f"{OF_ABC}  model.json\n"


@pytest.mark.parametrize("kind", ["folder", "link to nothing", "link to a folder"])
def test_something_else_in_the_place_of_the_list_is_an_error(models, kind):
    (models / CHECKSUMS).unlink()
    if kind == "folder":
        (models / CHECKSUMS).mkdir()
    else:
        (models / CHECKSUMS).symlink_to(models / "gone" if kind == "link to nothing" else models)
    with pytest.raises(WeightsError, match=r"checksums\.sha256 cannot be read: .*(No such file|Is a directory)"):
        load_weights(nn.Linear(2, 3), models / "model.pt")
    save_weights(nn.Linear(2, 3), models / "model.pt")  # nothing to forget
