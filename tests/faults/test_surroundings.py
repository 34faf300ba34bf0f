"""Workers, memory, clock, values and other runs that are not as they should be."""

import json
import os
import re
import signal
import time

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow


def at(event, contains, number=1, **action):
    return ("at", {"event": event, "contains": contains, "number": number, **action})


@pytest.mark.parametrize("phase", ["autoencoder", "diffusion"])
def test_killed_data_worker_is_told_and_the_run_goes_on(phase, commands, whole, compare, table, tmp_path):
    settings = {"num_workers": 2, "check_files": False, "trial_step": False}
    with table.attempt("a data worker is killed") as attempt:
        pause = at("open", f".{phase}_training.pt.", 2, kill=signal.SIGSTOP)
        process = commands.start("training", tmp_path, [pause], **settings)
        process.until_stopped()
        os.kill(int(process.children()[0]), signal.SIGKILL)
        os.kill(process.pid, signal.SIGCONT)
        assert process.wait() == 1, process.text()[-2000:]
        line = process.last_words()
        assert line.startswith("medfusion: error: ")
        assert "worker" in line
        attempt["sees"] = re.sub(r"\d+", "N", table.sentence(line, tmp_path))
        commands.run("training", tmp_path, **settings)
        compare.training(tmp_path, whole[0])


def test_batch_that_is_too_large_is_refused_with_one_that_fits(commands, table, tmp_path):
    with table.attempt("a batch too large for the memory") as attempt:
        line = commands.refused("training", tmp_path, diffusion_batch_size=50_000_000)
        assert re.search(r"--micro_batch_size \d+ would fit", line)
        attempt["sees"] = re.sub(r"\d[\d.]*( [GM]iB)", r"N\1", table.sentence(line, tmp_path))


def test_limit_of_the_process_counts_as_memory(commands, table, tmp_path):
    with table.attempt("a batch too large for the limit of the process (`ulimit -v`)") as attempt:
        limit = ("memory_limit", {"mib": 900})
        line = commands.refused("training", tmp_path, [limit], diffusion_batch_size=100_000)
        assert re.search(r"--micro_batch_size \d+ would fit", line)
        attempt["sees"] = re.sub(r"\d[\d.]*( [GM]iB)", r"N\1", table.sentence(line, tmp_path))


@pytest.mark.parametrize("mib", [0, 8])
def test_memory_that_runs_short_while_training_loses_nothing(mib, commands, whole, compare, table, before_phase_two):
    folder = before_phase_two()
    fault = ("memory_limit_at", {"event": "open", "contains": ".diffusion_training.pt.", "number": 2, "mib": mib})
    with table.attempt("memory runs short while training runs") as attempt:
        process = commands.start("training", folder, [fault])
        if process.wait() != 0:  # what it had already may have been enough
            attempt["sees"] = table.sentence(process.last_words(), folder)
            assert "memory" in attempt["sees"], process.text()[-2000:]
            commands.run("training", folder)
        compare.training(folder, whole[0])


@pytest.mark.parametrize("step", [1, 2])
def test_value_that_is_no_number_stops_before_the_weights(step, commands, whole, compare, table, before_phase_two):
    folder = before_phase_two()
    with table.attempt("a value of a batch is not a number") as attempt:
        line = commands.refused("training", folder, [("not_a_number", {"step": step})], trial_step=False)
        assert re.search(r"training stopped at step \d+: the loss is nan", line)
        attempt["sees"] = re.sub(r"step \d+", "step N", table.sentence(line, folder))
        commands.run("training", folder)
        compare.training(folder, whole[0])


def test_image_with_values_that_are_no_numbers_is_named(commands, whole, compare, table, data_dir, tmp_path):
    datalist = data_dir / "datalist.json"
    text = datalist.read_text()
    spoilt = json.loads(text)
    pixels = np.full((48, 48), 0.5, dtype=np.float32)
    pixels[20, 20] = np.nan
    Image.fromarray(pixels).save(data_dir / "spoilt.tif")
    spoilt["training"][3]["image"] = "spoilt.tif"
    with table.attempt("an image with values that are not numbers") as attempt:
        datalist.write_text(json.dumps(spoilt))
        try:
            line = commands.refused("training", tmp_path)
        finally:
            datalist.write_text(text)
            (data_dir / "spoilt.tif").unlink()
        assert "spoilt.tif" in line
        attempt["sees"] = table.sentence(line, data_dir)
        commands.run("training", tmp_path)
        compare.training(tmp_path, whole[0])


@pytest.mark.parametrize("calls", [0, 200])
def test_clock_that_is_set_back_changes_nothing(calls, commands, whole, compare, table, tmp_path):
    folder = tmp_path
    with table.attempt("the clock is set back by 30 days") as attempt:
        fault = at("open", ".diffusion_training.pt.", 2, kill=signal.SIGKILL)
        clock = ("clock_back", {"days": 30, "calls": calls})
        commands.run("training", folder, [fault], code=-signal.SIGKILL)
        commands.run("training", folder, [clock])
        compare.training(folder, whole[0])
        commands.run("inference", folder, [clock])
        compare.files(folder / "samples", whole[0] / "samples")
        attempt["sees"] = "nothing"


def test_files_of_the_future_change_nothing(commands, whole, compare, table, tmp_path):
    later = time.time() + 86400 * 365
    with table.attempt("files are younger than now") as attempt:
        fault = at("open", ".diffusion_training.pt.", 2, kill=signal.SIGKILL)
        commands.run("training", tmp_path, [fault], code=-signal.SIGKILL)
        for path in tmp_path.rglob("*"):
            os.utime(path, (later, later))
        commands.run("training", tmp_path)
        compare.training(tmp_path, whole[0])
        attempt["sees"] = "nothing"


CASES = [
    ("training", ".autoencoder_training.pt.", "training"),
    ("inference", ".png.", "sampling"),
    ("evaluating", ".features", "evaluation"),
]


@pytest.mark.parametrize(("run_id", "moment", "name"), CASES, ids=[case[2] for case in CASES])
def test_second_run_in_a_folder_is_refused(run_id, moment, name, commands, whole, compare, table, prepared, tmp_path):
    before = {"training": [], "inference": ["models"], "evaluating": ["models", "samples"]}[run_id]
    folder = prepared(*before) if before else tmp_path
    with table.attempt(f"two runs in one output folder, {name}") as attempt:
        first = commands.start(run_id, folder, [at("open", moment, 2, kill=signal.SIGSTOP)])
        first.until_stopped()
        line = commands.refused(run_id, folder)
        assert f"is in use by another run (process {first.pid} on " in line
        attempt["sees"] = re.sub(
            r"process \d+ on [^,]+, since [^)]*", "process N on HOST, since TIME", table.sentence(line, folder)
        )
        os.kill(first.pid, signal.SIGCONT)
        assert first.wait() == 0, first.text()[-2000:]
        if run_id == "training":
            compare.training(folder, whole[0])
        elif run_id == "inference":
            compare.files(folder / "samples", whole[0] / "samples")
        else:
            compare.report(folder, whole[0])


def test_two_trainings_that_begin_together_do_not_mix(commands, whole, compare, table, tmp_path):
    with table.attempt("two runs that begin together") as attempt:
        both = [commands.start("training", tmp_path) for _ in range(2)]
        codes = [process.wait() for process in both]
        assert sorted(codes) == [0, 1], [process.text()[-500:] for process in both]
        line = both[codes.index(1)].last_words()
        assert "is in use by another run" in line
        attempt["sees"] = "the same, for the later one"
        compare.training(tmp_path, whole[0])
