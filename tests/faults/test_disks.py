"""A disk that is full, or may only be read: one sentence says so, nothing is lost, and the run goes on later."""

import subprocess

import pytest

pytestmark = pytest.mark.slow

FULL = "disk full {}"
READ_ONLY = "output may only be read, {}"


def full_at(event, contains, folder, number=1):
    return ("at", {"event": event, "contains": contains, "number": number, "fill": str(folder)})


def test_training_without_room_is_refused_at_the_start(commands, table, disk, tmp_path, whole, compare):
    folder = disk(tmp_path / "disk", 0.25)
    with table.attempt(FULL.format("at the start")) as attempt:
        line = commands.refused("training", folder)
        assert "the run will write" in line
        assert "are free: make room" in line
        attempt["sees"] = table.sentence(line, folder)


@pytest.mark.parametrize(
    ("name", "number"), [("autoencoder_training.pt", 3), ("autoencoder_best.pt", 1), ("diffusion_training.pt", 5)]
)
def test_disk_that_fills_up_while_training_saves(name, number, commands, whole, compare, table, disk, tmp_path):
    folder = disk(tmp_path / "disk", 64)
    with table.attempt(FULL.format("while a checkpoint is saved")) as attempt:
        line = commands.refused("training", folder, [full_at("open", f".{name}.", folder, number)])
        assert "no disk space for" in line
        assert " free)" in line
        attempt["sees"] = table.sentence(line, folder)
        (folder / "filler").unlink()
        commands.run("training", folder)
        compare.training(folder, whole[0])


def test_disk_that_fills_up_while_latents_are_kept(commands, whole, compare, table, disk, before_phase_two, tmp_path):
    folder, latents = before_phase_two(), disk(tmp_path / "disk", 4)
    with table.attempt(FULL.format("while latents are kept")) as attempt:
        fault = full_at("open", "moments-", latents)
        line = commands.refused("training", folder, [fault], latents_dir=latents)
        assert "no disk space for the latents" in line
        attempt["sees"] = table.sentence(line, latents)
        (latents / "filler").unlink()
        commands.run("training", folder, latents_dir=latents)
        compare.training(folder, whole[0])


@pytest.mark.parametrize(("name", "number"), [(".png.", 4), ("/manifest.csv", 2)])
def test_disk_that_fills_up_while_samples_are_written(
    name, number, commands, whole, compare, table, disk, prepared, tmp_path
):
    folder = prepared("models", into=disk(tmp_path / "disk", 16))
    with table.attempt(FULL.format("while samples are written")) as attempt:
        line = commands.refused("inference", folder, [full_at("open", name, folder, number)])
        assert "no disk space for" in line
        attempt["sees"] = table.sentence(line, folder)
        (folder / "filler").unlink()
        commands.run("inference", folder)
        compare.files(folder / "samples", whole[0] / "samples")


@pytest.mark.parametrize("name", [".report.html.", ".features"])
def test_disk_that_fills_up_while_the_report_is_written(
    name, commands, whole, compare, table, disk, prepared, tmp_path
):
    folder = prepared("models", "samples", into=disk(tmp_path / "disk", 32))
    with table.attempt(FULL.format("while the report is written")) as attempt:
        line = commands.refused("evaluating", folder, [full_at("open", name, folder / "report")])
        assert "the disk is full" in line or "no disk space for" in line
        attempt["sees"] = table.sentence(line, folder)
        (folder / "report" / "filler").unlink()
        commands.run("evaluating", folder)
        compare.report(folder, whole[0])


@pytest.mark.parametrize("run_id", ["training", "inference", "evaluating"])
def test_output_that_may_only_be_read_is_refused(run_id, commands, table, disk, prepared, tmp_path):
    folder = prepared("models", "samples")
    read_only = disk(tmp_path / "read only", 1)
    assert commands_of("mount", "-o", "remount,ro", read_only) == 0
    with table.attempt(READ_ONLY.format("from the start")) as attempt:
        line = commands.refused(run_id, folder, output_dir=read_only / "out")
        assert "cannot be written" in line
        attempt["sees"] = table.sentence(line, read_only)


def test_file_in_the_place_of_a_folder_is_refused(commands, table, tmp_path):
    (tmp_path / "runs").write_text("in the way")
    with table.attempt("a file where the output folder should be") as attempt:
        line = commands.refused("training", tmp_path)
        assert "cannot be written" in line
        attempt["sees"] = table.sentence(line, tmp_path)


def test_output_that_may_only_be_read_from_some_moment_on(commands, whole, compare, table, disk, prepared, tmp_path):
    folder = prepared("models")
    samples = disk(tmp_path / "disk", 16)
    remount = f"mount --bind '{samples}' '{samples}' && mount -o remount,bind,ro '{samples}'"
    fault = ("at", {"event": "open", "contains": ".png.", "number": 4, "shell": remount})
    with table.attempt(READ_ONLY.format("from some moment on")) as attempt:
        line = commands.run("inference", folder, [fault], code=1, output_dir=samples).last_words()
        assert "Read-only file system" in line
        attempt["sees"] = table.sentence(line, samples)
        assert commands_of("umount", samples) == 0
        commands.run("inference", folder, output_dir=samples)
        compare.files(samples, whole[0] / "samples")


def commands_of(*command):
    return subprocess.run([str(part) for part in command], check=False).returncode
