import errno
import os

import pytest

from medfusion_monai.runtime.files import DiskFullError, in_words, refuse_unwritable, renamed_when_whole


def write(path, content, error=None):
    with renamed_when_whole(path) as partial:
        partial.write_bytes(content)
        if error is not None:
            raise error


def full(number=errno.ENOSPC):
    return OSError(number, os.strerror(number))


def test_file_takes_its_place_when_it_is_whole(tmp_path):
    write(tmp_path / "a.json", b"first")
    write(tmp_path / "a.json", b"second")
    assert (tmp_path / "a.json").read_bytes() == b"second"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_content_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(os, "fsync", lambda file: events.append(os.fstat(file).st_size))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("named"), replace(*paths)))
    write(tmp_path / "a.json", b"content")
    assert events == [7, "named"]


def test_error_leaves_what_was_there_and_nothing_beside_it(tmp_path):
    write(tmp_path / "a.json", b"first")
    with pytest.raises(KeyError):
        write(tmp_path / "a.json", b"half", KeyError())
    assert (tmp_path / "a.json").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_full_disk_is_told_with_the_file_and_the_space_left(tmp_path):
    write(tmp_path / "a.json", b"first")
    with pytest.raises(DiskFullError) as caught:
        write(tmp_path / "a.json", b"half", full())
    assert str(caught.value).startswith(f"no disk space for {tmp_path / 'a.json'} (No space left on device, ")
    assert " free)" in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / "a.json").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_quota_that_is_used_up_is_told(tmp_path):
    with pytest.raises(DiskFullError, match=r"a\.json \(Disk quota exceeded\): free some space"):
        write(tmp_path / "a.json", b"half", full(errno.EDQUOT))


def test_full_disk_below_another_error_is_found(tmp_path):
    def as_torch_does(path):
        with renamed_when_whole(path) as partial:
            try:
                partial.write_bytes(b"half")
                raise full()
            finally:
                raise RuntimeError("unexpected pos 400832 vs 400784")

    with pytest.raises(DiskFullError):
        as_torch_does(tmp_path / "a.pt")


def test_file_within_a_file_tells_of_the_full_disk_once(tmp_path):
    with pytest.raises(DiskFullError, match="inner"), renamed_when_whole(tmp_path / "outer.pt") as partial:
        write(partial.with_name("inner.json"), b"half", full())


def test_file_that_is_written_beside_its_place_twice_is_told_by_its_name(tmp_path):
    with pytest.raises(DiskFullError, match=r"/outer\.pt \("), renamed_when_whole(tmp_path / "outer.pt") as partial:
        write(partial, b"half", full())


def test_other_system_errors_stay_what_they_are(tmp_path):
    with pytest.raises(PermissionError):
        write(tmp_path / "a.json", b"half", PermissionError(errno.EACCES, "no"))


def test_folder_that_can_be_made_is_not_made(tmp_path):
    refuse_unwritable([tmp_path / "a" / "b"])
    assert not any(tmp_path.iterdir())


def test_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/runs cannot be written \(.*file is a file\)"):
        refuse_unwritable([tmp_path / "file" / "runs"])


def test_folder_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=r"runs cannot be written \(no permission, or a read-only disk\)"):
        refuse_unwritable([tmp_path / "runs"])


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (1.5 * 2**20, "1.5 MiB"), (3 * 2**40, "3072.0 GiB")],
)
def test_bytes_are_told_as_people_read_them(size, words):
    assert in_words(size) == words
