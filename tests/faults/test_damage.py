"""Files that are deleted or cut off while a command runs, or between two commands."""

import json
import os
import signal

import pytest

pytestmark = pytest.mark.slow

IMAGE = "a training image is {} while training runs"
LATENTS = "a file of latents is {}"


def halve(path):
    os.truncate(path, path.stat().st_size // 2)


def at(event, contains, number=1, **action):
    return ("at", {"event": event, "contains": contains, "number": number, **action})


def stopped_in_phase_two(commands, folder):
    """Kill the training while it writes the fourth checkpoint of phase two, each of which takes two renames."""
    fault = at("os.rename", ".diffusion_training.pt.", 7, kill=signal.SIGKILL)
    commands.run("training", folder, [fault], code=-signal.SIGKILL)


@pytest.fixture
def image(data_dir):
    """A training image, which is put back afterwards."""
    name = json.loads((data_dir / "datalist.json").read_text())["training"][3]["image"]
    path = data_dir / name
    content, status = path.read_bytes(), path.stat()

    def restore():
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    yield path, restore
    restore()


@pytest.mark.parametrize("damage", ["delete", "truncate"])
def test_image_that_is_lost_while_training_runs_is_named(
    damage, commands, whole, compare, table, image, data_dir, tmp_path
):
    path, restore = image
    fault = at("open", ".autoencoder_training.pt.", 2, **{damage: str(path)})
    with table.attempt(IMAGE.format({"delete": "deleted", "truncate": "cut off"}[damage])) as attempt:
        line = commands.refused("training", tmp_path, [fault])
        assert path.name in line
        attempt["sees"] = table.sentence(line, data_dir)
        restore()
        commands.run("training", tmp_path)
        compare.training(tmp_path, whole[0])


@pytest.mark.parametrize("damage", ["delete", "truncate"])
def test_latents_that_are_lost_between_runs_are_encoded_again(
    damage, commands, whole, compare, table, before_phase_two
):
    folder = before_phase_two()
    stopped_in_phase_two(commands, folder)
    shards = sorted((folder / "runs" / "latents").glob("*/*/moments-*.npy"))
    assert shards
    with table.attempt(
        LATENTS.format({"delete": "deleted", "truncate": "cut off"}[damage]) + " between runs"
    ) as attempt:
        for shard in shards:
            shard.unlink() if damage == "delete" else halve(shard)
        process = commands.run("training", folder)
        compare.training(folder, whole[0])
        assert "encoding" in process.text()
        attempt["sees"] = "the bar `encoding`: they are encoded again"


@pytest.mark.parametrize("split", ["training", "validation"])
def test_latents_that_are_deleted_while_they_are_in_use(split, commands, whole, compare, table, before_phase_two):
    folder = before_phase_two()
    fault = at("open", ".diffusion_training.pt.", shell=f"rm {folder}/runs/latents/{split}/*/moments-*")
    with table.attempt(LATENTS.format("deleted") + " while training runs") as attempt:
        process = commands.start("training", folder, [fault])
        if split == "training":  # it is open, and stays readable to the end
            assert process.wait() == 0
        else:  # it is first read after that
            assert process.wait() == 1
            assert "moments-00000.npy" in process.last_words()
            attempt["sees"] = table.sentence(process.last_words(), folder) + ", or nothing if it was already open"
            commands.run("training", folder)
        compare.training(folder, whole[0])


def test_latents_that_are_cut_off_while_they_are_in_use(commands, whole, compare, table, before_phase_two):
    folder = before_phase_two()
    fault = at(
        "open", ".diffusion_training.pt.", 2, shell=f"truncate -s 100 {folder}/runs/latents/training/*/moments-*"
    )
    with table.attempt(LATENTS.format("cut off") + " while training reads it") as attempt:
        process = commands.start("training", folder, [fault])
        code = process.wait()
        assert code in (1, -signal.SIGBUS)
        attempt["sees"] = (
            "`Bus error`, signal 7" if code == -signal.SIGBUS else table.sentence(process.last_words(), folder)
        )
        commands.run("training", folder)
        compare.training(folder, whole[0])


def test_newest_checkpoint_that_is_cut_off_gives_way_to_the_one_before(
    commands, whole, compare, table, before_phase_two
):
    folder = before_phase_two()
    stopped_in_phase_two(commands, folder)
    halve(folder / "runs" / "checkpoints" / "diffusion_training.pt")
    with table.attempt("the newest checkpoint is cut off") as attempt:
        text = commands.run("training", folder).text()
        assert "resuming from diffusion_training.previous.pt" in text
        compare.training(folder, whole[0])
        attempt["sees"] = "a warning with its name; training resumes from the previous one"


def test_autoencoder_that_is_cut_off_between_the_phases(commands, whole, compare, table, before_phase_two):
    folder = before_phase_two()
    halve(folder / "models" / "autoencoder.pt")
    with table.attempt("`autoencoder.pt` is cut off between the phases") as attempt:
        line = commands.refused("train_diffusion", folder)
        assert "autoencoder.pt cannot be read: damaged" in line
        attempt["sees"] = table.sentence(line, folder)
        commands.run("training", folder)
        compare.training(folder, whole[0])
        attempt["sees"] += "; `training` writes it again"


def test_model_that_is_cut_off_is_refused(commands, whole, compare, table, prepared):
    folder = prepared("models", "runs")
    halve(folder / "models" / "model.pt")
    with table.attempt("`model.pt` is cut off before sampling") as attempt:
        line = commands.refused("inference", folder)
        assert "model.pt cannot be read: damaged" in line
        attempt["sees"] = table.sentence(line, folder)


def test_manifest_that_is_cut_off_is_made_whole(commands, whole, compare, table, prepared):
    folder = prepared("models")
    commands.run("inference", folder, [at("open", ".png.", 7, kill=signal.SIGKILL)], code=-signal.SIGKILL)
    manifest = folder / "samples" / "manifest.csv"
    os.truncate(manifest, manifest.stat().st_size - 30)
    with table.attempt("the manifest is cut off between runs") as attempt:
        commands.run("inference", folder)
        compare.files(folder / "samples", whole[0] / "samples")
        attempt["sees"] = "nothing; missing samples are sampled again"


@pytest.mark.parametrize("size", [0, 200])
def test_sample_that_is_cut_off_is_sampled_again(size, commands, whole, compare, table, prepared):
    folder = prepared("models", "samples")
    sample = sorted((folder / "samples").glob("*.png"))[3]
    os.truncate(sample, size)
    with table.attempt("a sample is cut off between runs") as attempt:
        commands.run("inference", folder)
        compare.files(folder / "samples", whole[0] / "samples")
        attempt["sees"] = "nothing; it is sampled again"


@pytest.mark.parametrize("damage", ["delete", "truncate"])
def test_sample_that_is_lost_during_evaluation_is_named(damage, commands, whole, compare, table, prepared):
    folder = prepared("models", "samples")
    sample = sorted((folder / "samples").glob("*.png"))[-1]
    content = sample.read_bytes()
    fault = at("open", sorted((folder / "samples").glob("*.png"))[0].name, 2, **{damage: str(sample)})
    with table.attempt("a sample is deleted or cut off during evaluation") as attempt:
        line = commands.refused("evaluating", folder, [fault])
        assert sample.name in line
        assert not (folder / "report" / "report.html").exists()
        attempt["sees"] = table.sentence(line, folder)
        sample.write_bytes(content)
        commands.run("evaluating", folder)
        compare.report(folder, whole[0])
