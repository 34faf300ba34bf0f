"""Killed at any moment, the same command goes on, and ends as if it had not been killed."""

import random
import signal

import pytest

pytestmark = pytest.mark.slow

KILLED = "killed (SIGKILL) in {}, at a random moment"
SAVING = "killed (SIGKILL) right before a file takes its place"
TERM = "asked to stop (SIGTERM) in {}, at a random moment"
NOTHING = "nothing; the same command continues"


@pytest.mark.parametrize("part", range(12))
def test_killed_training_ends_with_the_same_bits(part, commands, whole, compare, table, tmp_path):
    expected, seconds, _ = whole
    moment = compare.moments(12)[part] * seconds["training"]
    with table.attempt(KILLED.format("training")) as attempt:
        code = commands.start("training", tmp_path).send_at(signal.SIGKILL, moment)
        assert code in (-signal.SIGKILL, 0)
        commands.run("training", tmp_path)
        compare.training(tmp_path, expected)
        attempt["sees"] = NOTHING


@pytest.mark.parametrize("part", range(4))
def test_training_killed_while_it_saves_ends_with_the_same_bits(part, commands, whole, compare, table, tmp_path):
    expected, _, renamed = whole
    number = 1 + random.Random(0).sample(range(renamed["training"]), 4)[part]
    fault = ("at", {"event": "os.rename", "contains": "", "number": number, "kill": signal.SIGKILL})
    with table.attempt(SAVING) as attempt:
        commands.run("training", tmp_path, [fault], code=-signal.SIGKILL)
        commands.run("training", tmp_path)
        compare.training(tmp_path, expected)
        attempt["sees"] = NOTHING


@pytest.mark.parametrize("part", range(2))
def test_killed_sampling_ends_with_the_same_bytes(part, commands, whole, compare, table, prepared):
    expected, seconds, _ = whole
    folder = prepared("models")
    moment = compare.moments(2, seed=1)[part] * seconds["inference"]
    with table.attempt(KILLED.format("sampling")) as attempt:
        code = commands.start("inference", folder).send_at(signal.SIGKILL, moment)
        assert code in (-signal.SIGKILL, 0)
        commands.run("inference", folder)
        compare.files(folder / "samples", expected / "samples")
        attempt["sees"] = NOTHING


@pytest.mark.parametrize("part", range(2))
def test_killed_evaluation_ends_with_the_same_figures(part, commands, whole, compare, table, prepared):
    expected, seconds, _ = whole
    folder = prepared("models", "samples")
    moment = compare.moments(2, seed=2)[part] * seconds["evaluating"]
    with table.attempt(KILLED.format("evaluation")) as attempt:
        code = commands.start("evaluating", folder).send_at(signal.SIGKILL, moment)
        assert code in (-signal.SIGKILL, 0)
        commands.run("evaluating", folder)
        compare.report(folder, expected)
        attempt["sees"] = NOTHING


@pytest.mark.parametrize("part", range(3))
def test_training_that_is_asked_to_stop_ends_with_the_same_bits(part, commands, whole, compare, table, tmp_path):
    expected, seconds, _ = whole
    moment = compare.moments(3, seed=3)[part] * seconds["training"]
    with table.attempt(TERM.format("training")) as attempt:
        process = commands.start("training", tmp_path)
        code = process.send_at(signal.SIGTERM, moment)
        # Before the command has begun to listen it ends as any program does.
        assert code in (75, -signal.SIGTERM, 0), process.text()[-2000:]
        if code == 75:
            assert "medfusion: stopped by SIGTERM" in process.text()
            attempt["sees"] = "`stopped by SIGTERM ...` and where it resumes, exit code 75"
        commands.run("training", tmp_path)
        compare.training(tmp_path, expected)


@pytest.mark.parametrize("run_id", ["inference", "evaluating"])
def test_other_command_that_is_asked_to_stop_ends_the_same(run_id, commands, whole, compare, table, prepared):
    expected, seconds, _ = whole
    folder = prepared("models", *(["samples"] if run_id == "evaluating" else []))
    name = {"inference": "sampling", "evaluating": "evaluation"}[run_id]
    with table.attempt(TERM.format(name)) as attempt:
        code = commands.start(run_id, folder).send_at(signal.SIGTERM, 0.7 * seconds[run_id])
        assert code in (-signal.SIGTERM, 0)
        commands.run(run_id, folder)
        if run_id == "inference":
            compare.files(folder / "samples", expected / "samples")
        else:
            compare.report(folder, expected)
        attempt["sees"] = NOTHING
