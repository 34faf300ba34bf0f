"""The writer of samples: what is on disk after batches, kills and reruns."""

import csv
import errno
import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.transforms import LoadImage

from medfusion_monai.runtime.files import DiskFullError
from medfusion_monai.sampling import manifest as row_list
from medfusion_monai.sampling.image_formats import FORMATS, ImageFormat, suffix_of
from medfusion_monai.sampling.plan import sampling_plan
from medfusion_monai.sampling.writer import SampleWriter


@pytest.fixture
def writer(tmp_path):
    """Makes the writer of a run of four images of two classes, in batches of two."""
    (tmp_path / "model.pt").write_bytes(b"weights")
    (tmp_path / "out").mkdir()

    def make(**settings):
        plan = sampling_plan(["a, b", "c"], num_samples=2)
        arguments = {"settings": {"eta": 1.0}, "model_file": tmp_path / "model.pt", "batch_size": 2} | settings
        return SampleWriter(plan, tmp_path / "out", **arguments)

    return make


def hand_over(writer, indices, images=None):
    """Hand the writer a batch as an evaluator does."""
    items = [writer.plan[index] for index in indices]
    batch = {name: [item[name] for item in items] for name in items[0]}
    if images is None:
        images = torch.stack([torch.full((1, 4, 6), index / 10) for index in indices])
    writer(SimpleNamespace(state=SimpleNamespace(batch=batch, output={"pred": images})))


def write(writer, indices, images=None):
    hand_over(writer, indices, images)
    writer.settle()


def write_all(writer):
    for batch in writer:
        write(writer, batch)
    writer.report()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_manifest_grows_by_the_lines_of_a_batch(writer):
    ours = writer()
    write(ours, [2, 3])
    first = (ours.output_dir / "manifest.csv").read_bytes()
    write(ours, [0, 1])
    grown = (ours.output_dir / "manifest.csv").read_bytes()
    assert first.count(b"\n") == 3
    assert grown.startswith(first)
    assert grown.count(b"\n") == 5


def test_next_batch_is_sampled_while_one_is_written(writer, monkeypatch):
    begun, go_on, png = threading.Event(), threading.Event(), FORMATS["png"]

    def slowly(*args):
        begun.set()
        assert go_on.wait(30)
        return png.encode(*args)

    monkeypatch.setitem(FORMATS, "png", png._replace(encode=slowly))
    ours = writer()
    hand_over(ours, [0, 1])
    assert begun.wait(30)
    assert "manifest.csv" not in contents(ours.output_dir)
    go_on.set()
    hand_over(ours, [2, 3])
    ours.report()
    assert list(writer()) == []


def test_problem_of_a_batch_is_raised_before_the_next_is_written(writer):
    ours = writer()
    hand_over(ours, [0, 1], torch.full((2, 1, 4, 6), torch.nan))
    with pytest.raises(ValueError, match="not finite"):
        hand_over(ours, [2, 3])
    assert contents(ours.output_dir) == {}


def test_bar_begins_before_the_first_batch_with_what_is_there(writer):
    write(writer(), [2, 3])
    ours = writer()
    ours.attach(engine := Engine(lambda *_: None))
    engine.add_event_handler(Events.STARTED, lambda: seen.append((ours.bar.n, ours.bar.total)))
    seen = []
    engine.fire_event(Events.STARTED)
    assert seen == [(2, len(ours.plan))]


def test_manifest_that_excel_saved_is_read(writer):
    write_all(writer())
    path = writer().output_dir / "manifest.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert list(writer()) == []


def test_report_sorts_the_manifest(writer):
    ours = writer()
    write(ours, [2, 3])
    write(ours, [0, 1])
    ours.report()
    with open(ours.output_dir / "manifest.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [item["file"] for item in ours.plan]
    assert rows[0]["class_name"] == "a, b"


@pytest.mark.parametrize("cut", range(1, 400, 7))
def test_run_resumes_after_a_kill_in_the_middle_of_a_line(writer, cut):
    write_all(writer())
    folder = writer().output_dir
    whole = contents(folder)
    manifest = folder / "manifest.csv"
    manifest.write_bytes(whole["manifest.csv"][:-cut])
    write_all(writer())
    assert contents(folder) == whole


def test_file_that_is_lost_is_written_again_with_one_line(writer):
    write_all(writer())
    folder = writer().output_dir
    whole = contents(folder)
    (folder / writer().plan[1]["file"]).unlink()
    assert list(writer()) == [[0, 1]]
    write_all(writer())
    assert contents(folder) == whole


def test_refused_folder_keeps_its_cut_line(writer):
    write_all(writer())
    manifest = writer().output_dir / "manifest.csv"
    manifest.write_bytes(manifest.read_bytes()[:-3])
    before = manifest.read_bytes()
    with pytest.raises(ValueError, match="contains images of another run"):
        list(writer(settings={"eta": 0.0}))
    assert manifest.read_bytes() == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_batch_with_values_that_are_not_finite_is_not_written(writer, value):
    ours = writer()
    images = torch.zeros(2, 1, 4, 6)
    images[1, 0, 2, 2] = value
    with pytest.raises(ValueError, match=f"{ours.plan[1]['file']}.*label 0.*seed {ours.plan[1]['seed']}"):
        write(ours, [0, 1], images)
    assert not contents(ours.output_dir)


def test_failed_write_leaves_no_remains(writer, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write(writer(), [0, 1])
    assert not contents(writer().output_dir)


@pytest.mark.parametrize(("channels", "options"), [(1, {}), (3, {"channel_dim": -1})])
def test_nifti_is_read_by_monai_as_channels_width_height(channels, options, tmp_path):
    (tmp_path / "model.pt").write_bytes(b"weights")
    plan = sampling_plan(["a"], num_samples=1, suffix=".nii.gz")
    images = torch.rand(1, channels, 4, 6, generator=torch.Generator().manual_seed(0))
    write(SampleWriter(plan, tmp_path, {}, tmp_path / "model.pt", output_format="nifti"), [0], images)
    read = LoadImage(image_only=True, ensure_channel_first=True, **options)(tmp_path / plan[0]["file"])
    assert read.shape == (channels, 6, 4)
    assert np.array_equal(read.numpy(), images[0].numpy().transpose(0, 2, 1))


@pytest.mark.parametrize("size", [0, 2.5, "abc", True])
def test_batch_size_that_is_not_a_whole_number_is_refused(writer, size):
    with pytest.raises(ValueError, match="batch_size must be a whole number"):
        writer(batch_size=size)


def parts(writer, world_size=2):
    return [writer(batch_size=1, rank=rank, world_size=world_size) for rank in range(world_size)]


def test_two_processes_share_the_batches_and_leave_what_one_leaves(writer, two_processes):
    write_all(writer(batch_size=1))
    folder = writer().output_dir
    whole = contents(folder)
    for path in folder.iterdir():
        path.unlink()

    def share(rank):
        ours = parts(writer)[rank]
        write_all(ours)
        return list(ours)

    assert two_processes(share) == [[[0], [2]], [[1], [3]]]
    assert contents(folder) == whole


@pytest.mark.parametrize("done", [{0: [0, 2], 1: [1]}, {0: [], 1: [1, 3]}, {0: [0], 3: [2, 1]}])
def test_killed_run_of_several_processes_is_resumed_by_one(done, writer):
    write_all(writer(batch_size=1))
    folder = writer().output_dir
    whole = contents(folder)
    for path in folder.iterdir():
        path.unlink()
    for rank, indices in done.items():
        for index in indices:
            ours = writer(batch_size=1, rank=rank, world_size=4)
            ours.missing = [[number] for number in range(4)]  # as the first process broadcasts it
            write(ours, [index])
    cut = folder / f"manifest.{max(done)}.csv"
    cut.write_bytes(cut.read_bytes()[:-4])
    lost = done[max(done)][-1]
    again = writer(batch_size=1)
    written = {index for indices in done.values() for index in indices} - {lost}
    left = [[index] for index in range(4) if index not in written]
    assert list(again) == left
    assert not list(folder.glob("manifest.*.csv"))
    write_all(again)
    assert contents(folder) == whole


def test_manifests_of_another_run_s_processes_are_refused_and_kept(writer):
    ours = writer(rank=1, world_size=2)
    ours.missing = [[0, 1], [2, 3]]
    write(ours, [2, 3])
    before = contents(ours.output_dir)
    with pytest.raises(ValueError, match=r"manifest\.1\.csv contains images of another run"):
        list(writer(settings={"eta": 0.0}))
    assert contents(ours.output_dir) == before


def test_other_files_named_like_a_manifest_are_left_alone(writer):
    other = writer().output_dir / "manifest.mine.csv"
    other.write_text("mine")
    write_all(writer())
    assert other.read_text() == "mine"


def test_report_of_a_complete_folder_keeps_its_manifest(writer):
    write_all(writer())
    before = contents(writer().output_dir)
    writer().report()
    assert contents(writer().output_dir) == before


@pytest.mark.parametrize("output_format", ["png", "nifti"])
@pytest.mark.parametrize("size", [0, 40, -1])
def test_file_that_was_cut_off_is_sampled_again(size, output_format, writer):
    suffix = ".nii.gz" if output_format == "nifti" else ".png"
    settings = {"output_format": output_format}
    first = writer(**settings)
    first.plan = [{**item, "file": item["file"].replace(".png", suffix)} for item in first.plan]
    write_all(first)
    path = first.output_dir / first.plan[2]["file"]
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)
    again = writer(**settings)
    again.plan = first.plan
    assert list(again) == [[2, 3]]


def test_manifest_that_the_disk_has_no_room_for_is_named(writer, monkeypatch):
    ours = writer()
    write(ours, [0, 1])

    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(row_list.csv, "DictWriter", full)
    with pytest.raises(DiskFullError, match=r"no disk space for \S+manifest\.csv"):
        write(ours, [2, 3])


def test_registered_format_is_written_and_its_cut_files_again(writer, monkeypatch):
    def encode(image, note):
        return image.tobytes() + f"{note['synthetic']} {note['seed']}.".encode()

    def is_whole(path):
        return path.is_file() and path.read_bytes().endswith(b".")

    monkeypatch.setitem(FORMATS, "raw", ImageFormat(".raw", encode, is_whole))
    plan = sampling_plan(["a, b", "c"], num_samples=2, suffix=suffix_of("raw", channels=1))

    def make():
        ours = writer(output_format="raw", settings={"output_format": "raw"})
        ours.plan = plan
        return ours

    write_all(make())
    folder = make().output_dir
    whole = contents(folder)
    third = plan[2]
    expected = np.full((1, 4, 6), 0.2, np.float32).tobytes() + f"True {third['seed']}.".encode()
    assert whole[third["file"]] == expected
    assert third["file"].endswith(".raw")
    assert list(make()) == []
    os.truncate(folder / third["file"], len(expected) - 1)
    assert list(make()) == [[2, 3]]
    write_all(make())
    assert contents(folder) == whole
