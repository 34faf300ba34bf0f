import argparse
import json
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.networks.autoencoder import Autoencoder

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
arms, evaluation, material, protocol, quality_study, running, store, summary, training = (
    import_module(name)
    for name in (
        "study.arms",
        "study.evaluation",
        "study.material",
        "study.protocol",
        "quality_study",
        "study.running",
        "study.store",
        "study.summary",
        "study.training",
    )
)
sys.path.remove(str(BENCHMARKS))

RECIPE = {
    "class_names": ["a", "b"],
    "image_size": [8, 8],
    "image_channels": 1,
    "latent_flips": [],
    "unet_channels": [8, 8, 16],
    "unet_embedding_channels": 16,
    "unet_norm_groups": 4,
    "diffusion_batch_size": 4,
    "diffusion_lr": 1e-3,
    "diffusion_lr_warmup": 2,
    "diffusion_lr_decay": "linear",
    "label_dropout": 0.5,
    "max_grad_norm": 1.0,
}


@pytest.fixture
def tiny():
    """Two classes of 8x8 images, of the second three times as many, with latents of 2x4x4 values without spread."""
    torch.manual_seed(0)
    network = Autoencoder(1, 2, channels=(8, 8), norm_groups=4).eval().requires_grad_(False)
    torch.nn.init.normal_(network.conv_out.weight, std=0.3)  # it starts at zero, and all images would be gray
    images, labels = torch.rand(8, 1, 8, 8), [0, 1, 1, 1] * 2
    mean = torch.randn(8, 2, 4, 4)
    moments = torch.cat([mean, torch.full_like(mean, -30.0)], dim=1)
    split = material.Split(images, labels, moments, torch.randn(8, 5, 2, 2).half())
    return material.Material(RECIPE, network, split, split)


class GivenMaterials:
    """Gives every arm the same material."""

    def __init__(self, given, extractor=None):
        self.given, self.extractor, self.recipe = given, extractor, given.recipe
        self.images = {"training": (given.training.images, given.training.labels)}

    def material(self, arm):
        return self.given

    def reference(self):
        return material.features_of(self.extractor, self.given.training.images)


def judge_of(tiny, extractor=None, num_samples=16):
    return evaluation.Judge(GivenMaterials(tiny, extractor), tiny, None, num_samples)


def arm(name):
    return next(each for each in arms.ARMS if each.name == name)


def evaluated(name, seed, fid, sampler=evaluation.FAST, agreement=0.9, **others):
    record = {"arm": name, "seed": seed, "weights": "averaged", "sampler": sampler, "guidance_scale": 1.0}
    return {**record, "fid": fid, "agreement": agreement, "auc": 0.9, **others}


# Arms


@pytest.mark.parametrize("name", [each.name for each in arms.ARMS if each.name != arms.BASELINE])
def test_an_arm_differs_in_one_respect_from_the_arm_that_it_is_set_against(name):
    one, other = arm(name), arm(arm(name).against)
    changed = [part for part, value in one.recipe.items() if value != other.recipe[part]]
    assert len(changed) == 1


def test_the_baseline_is_always_among_the_chosen_arms_and_first():
    assert [each.name for each in arms.choose_arms(["flow", "v"])] == ["baseline", "v", "flow"]


def test_an_unknown_arm_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="flo: no arm of the study. There are baseline, l2"):
        arms.choose_arms(["flo"])


# Training


@pytest.mark.parametrize("name", ["v_min_snr", "attention", "zero_snr", "flow", "dropout", "contrastive", "aligned"])
def test_arms_of_a_seed_start_from_the_same_weights_and_see_the_same_samples(tiny, name):
    one, other = training.Training(arm("baseline"), tiny, 3, 10), training.Training(arm(name), tiny, 3, 10)
    theirs = dict(other.network.named_parameters())
    assert all(torch.equal(value, theirs[key]) for key, value in one.network.named_parameters())
    batch = one.batch(0)
    assert batch["seed"].tolist() == other.batch(0)["seed"].tolist()
    seen = [each.prepare(batch, torch.device("cpu"))[3] for each in (one, other)]
    assert all(torch.equal(seen[0][key], seen[1][key]) for key in ("timesteps", "class_labels"))


def test_another_seed_gives_other_weights_and_another_order(tiny):
    one, other = (training.Training(arm("baseline"), tiny, seed, 10) for seed in (0, 1))
    assert not torch.equal(one.network.conv_in.weight, other.network.conv_in.weight)
    assert one.batch(0)["seed"].tolist() != other.batch(0)["seed"].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("each", arms.ARMS, ids=lambda each: each.name)
def test_every_arm_learns_the_one_latent_that_there_is(tiny, each):
    moments = tiny.training.moments[:1].repeat(8, 1, 1, 1)
    tiny = tiny._replace(training=tiny.training._replace(moments=moments))
    recipe = {**RECIPE, "diffusion_lr": 3e-2, "diffusion_lr_decay": "constant", "diffusion_batch_size": 8}
    course = training.Training(each, tiny._replace(recipe=recipe), 0, 25)
    losses = [course.step() for _ in range(25)]
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:4])


def test_a_trained_arm_tells_its_steps_and_the_average_lags_behind_the_raw_weights(tiny):
    trained = training.train(arm("baseline"), tiny, 0, 12)
    assert (trained.record["steps"], trained.record["arm"], trained.record["seed"]) == (12, "baseline", 0)
    assert not torch.equal(trained.averaged["conv_out.weight"], trained.raw["conv_out.weight"])


@pytest.mark.parametrize("name", ["baseline", "dropout", "contrastive", "aligned"])
def test_a_training_that_is_stopped_and_goes_on_equals_an_uninterrupted_one(tiny, tmp_path, name):
    whole = training.train(arm(name), tiny, 0, 6)
    early = training.train(arm(name), tiny, 0, 6, 4)
    stopped = [training.train(arm(name), tiny, 0, 6, until, tmp_path / "checkpoint.pt") for until in (2, 4, 6)]
    for one, other in ((early, stopped[1]), (whole, stopped[2])):
        assert all(torch.equal(value, other.averaged[key]) for key, value in one.averaged.items())
        assert all(torch.equal(value, other.raw[key]) for key, value in one.raw.items())
    assert [each.record["steps"] for each in stopped] == [2, 4, 6]
    assert stopped[2].record["last_loss"] == whole.record["last_loss"]


def test_a_training_is_saved_on_its_way_and_goes_on_from_there_after_a_kill(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    path, step = tmp_path / "checkpoint.pt", training.Training.step

    def killed(self):
        if self.done == 5:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            training.train(arm("baseline"), tiny, 0, 8, 8, path)
    assert torch.load(path, weights_only=True)["progress"]["done"] == 5
    steps = []
    monkeypatch.setattr(training.Training, "step", lambda self: steps.append(self.done) or step(self))
    training.train(arm("baseline"), tiny, 0, 8, 8, path)
    assert steps == [5, 6, 7]


def test_a_checkpoint_of_a_later_step_is_not_used(tiny, tmp_path):
    training.train(arm("baseline"), tiny, 0, 8, 8, tmp_path / "checkpoint.pt")
    again = training.train(arm("baseline"), tiny, 0, 8, 3, tmp_path / "checkpoint.pt")
    assert again.record["steps"] == 3


def test_a_batch_has_the_features_of_its_own_images(tiny):
    numbers = torch.arange(8.0)[:, None, None, None].half()
    split = tiny.training._replace(moments=numbers.expand(8, 4, 4, 4), features=numbers.expand(8, 5, 2, 2))
    one = training.Training(arm("aligned"), tiny._replace(training=split), 0, 10)
    for number in (0, 1, 5):
        batch = one.batch(number)
        assert torch.equal(batch["features"][:, 0, 0, 0], batch["moments"][:, 0, 0, 0])


def test_a_step_costs_the_median_of_its_rounds_after_the_warm_ones(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(training.time, "process_time", lambda: clock.now)
    costs = iter([9.0, 100.0, 1.0, 10.0, 2.0, 20.0, 7.0, 70.0])

    def work():
        clock.now += next(costs)

    assert training.interleaved_medians([work, work], rounds=3, warm=1) == [2.0, 20.0]


def test_an_arm_that_is_measured_later_is_scaled_by_the_baseline(monkeypatch, tiny):
    monkeypatch.setattr(training, "interleaved_medians", lambda functions, *_: [4.0, 6.0][: len(functions)])
    seconds = training.measure_steps([arm("baseline"), arm("flow")], lambda arm: tiny, {"baseline": 2.0})
    assert seconds == {"baseline": 2.0, "flow": 3.0}


def test_steps_that_are_known_are_not_measured_again(monkeypatch, tiny):
    monkeypatch.setattr(training, "interleaved_medians", None)
    assert training.measure_steps([arm("baseline")], None, {"baseline": 2.0}) == {"baseline": 2.0}


# Evaluation


class Estimate(nn.Module):
    """A network that estimates the same latents whatever it sees."""

    def __init__(self, latents):
        super().__init__()
        self.latents = latents

    def forward(self, x, timesteps, class_labels):
        return self.latents.expand_as(x)


def test_the_error_of_clean_latents_is_their_square_for_a_network_that_estimates_zero(tiny):
    errors = evaluation.clean_error(Estimate(torch.zeros(1)), NoiseSchedule(prediction_type="sample"), tiny)
    expected = tiny.held_out.moments[:, :2].square().mean().item()
    assert errors == pytest.approx(dict.fromkeys(errors, expected), rel=1e-5)
    assert set(errors) == {"4", "2", "0", "-2", "-4", "-6", "geometric_mean"}


def test_a_perfect_estimate_of_the_velocity_has_no_error_in_the_clean_latents(tiny):
    mean = tiny.held_out.moments[:1, :2]
    moments = torch.cat([mean, torch.full_like(mean, -30.0)], dim=1).repeat(8, 1, 1, 1)
    tiny = tiny._replace(held_out=tiny.held_out._replace(moments=moments))
    schedule = NoiseSchedule(schedule="flow", prediction_type="velocity")

    def velocity(x, timesteps, class_labels):
        sigma = (timesteps[:, None, None, None] + 1) / 1000
        return (x - (1 - sigma) * mean) / sigma - mean

    assert evaluation.clean_error(velocity, schedule, tiny)["geometric_mean"] < 1e-9


@pytest.mark.parametrize(("log_snr", "timestep"), [(0.0, 499), (2 * np.log(9.0), 99), (-2 * np.log(9.0), 899)])
def test_the_noise_level_of_the_straight_path_is_found_in_closed_form(log_snr, timestep):
    schedule = NoiseSchedule(schedule="flow", prediction_type="velocity")
    assert evaluation.nearest_timestep(schedule, log_snr) == timestep


def test_samples_have_the_classes_as_often_as_the_training_images(tiny):
    labels, seeds = judge_of(tiny).plan(0)
    assert labels.tolist() == [0] * 4 + [1] * 12
    assert len(set(seeds)) == 16


def test_each_seed_of_the_study_samples_other_images(tiny):
    judge = judge_of(tiny)
    assert not set(judge.plan(0)[1]) & set(judge.plan(1)[1])


WITHOUT_NOISE = [evaluation.FAST, evaluation.CHECK, evaluation.SMALL]


@pytest.mark.parametrize(
    ("name", "sampler"),
    [(name, sampler) for name in ("baseline", "zero_snr") for sampler in evaluation.SAMPLERS]
    + [("flow", sampler) for sampler in WITHOUT_NOISE],  # its path has no fresh noise
)
def test_an_exact_denoiser_samples_the_images_of_its_latents(tiny, name, sampler):
    latents = tiny.training.moments[:1, :2]
    schedule = NoiseSchedule(**arm(name).schedule)

    def network(x, timesteps, class_labels):
        timestep = int(timesteps[0])
        noise = (x - schedule.exact_signal[timestep] * latents) / schedule.exact_sigma[timestep]
        return schedule.target(latents.expand_as(x), noise, timesteps)

    images, labels = judge_of(tiny, num_samples=4).sample(network, schedule, sampler, 0)
    assert len(labels) == len(images) == 4
    expected = material.decode(tiny.autoencoder, latents)
    assert (images - expected).abs().max() <= 1.01 / 255


def test_decoded_images_hold_the_values_that_files_of_8_bits_do(tiny):
    levels = material.decode(tiny.autoencoder, torch.randn(2, 2, 4, 4)) * 255
    assert (levels - levels.round()).abs().max() < 1e-4
    assert 0 <= levels.min() < levels.max() <= 255


def test_the_real_training_images_are_no_distance_from_themselves(tiny, monkeypatch):
    monkeypatch.setattr(evaluation, "train_classifier", partial(evaluation.train_classifier, steps=10, size=32))
    torch.manual_seed(0)
    images, labels = torch.rand(40, 1, 32, 32), [0, 1] * 20
    images[1::2, :, :16] *= 0.2
    split = material.Split(images, labels, torch.zeros(40, 4, 4, 4))
    judge = judge_of(tiny._replace(training=split), lambda x: x.flatten(1)[:, ::64])
    figures = judge.measure(images, torch.tensor(labels))
    assert figures["fid"] == pytest.approx(0.0, abs=1e-6)
    assert (figures["precision"], figures["recall"], figures["agreement"]) == (1.0, 1.0, None)
    assert figures["auc"] > 0.95


# Material


def test_a_study_takes_its_recipe_from_the_demo_of_the_bundle():
    recipe = material.read_recipe(quality_study.BUNDLE, "demo.yaml", {"autoencoder_steps": 7})
    assert recipe["unet_channels"] == [64, 64, 96, 128]
    assert (recipe["autoencoder_steps"], recipe["diffusion_lr_decay"], recipe["label_dropout"]) == (7, "linear", 0.5)


# Summary


def test_differences_are_paired_by_seed():
    assert summary.paired({0: 5.0, 1: 9.0, 2: 1.0}, {1: 4.0, 0: 6.0}) == [-1.0, 5.0]


def test_rows_hold_mean_and_half_the_range_and_differences_from_the_baseline():
    records = [evaluated("baseline", 0, 10.0), evaluated("baseline", 1, 14.0)]
    records += [evaluated("v", 0, 8.0), evaluated("v", 1, 13.0), evaluated("v", 0, 1.0, guidance_scale=2.0)]
    rows = {(row["arm"], row["guidance_scale"]): row["fid"] for row in summary.summarise(records)}
    assert rows["v", 1.0] == {"mean": 10.5, "half_range": 2.5, "by_seed": {0: 8.0, 1: 13.0}, "difference": [-2.0, -1.0]}
    assert rows["v", 2.0]["difference"] == [-9.0]


def test_the_best_arm_is_not_the_baseline_and_not_judged_by_guidance_or_the_other_sampler():
    records = [evaluated("baseline", 0, 1.0), evaluated("l2", 0, 5.0), evaluated("v", 0, 4.0)]
    records += [evaluated("l2", 0, 1.0, guidance_scale=2.0), evaluated("l2", 0, 1.0, sampler=evaluation.CHECK)]
    assert summary.best_arm(records) == "v"


def study_of(difference=-5.0, baseline_range=1.0, agreement=0.9, check=-5.0):
    return [
        evaluated("baseline", 0, 20.0),
        evaluated("baseline", 1, 20.0 + 2 * baseline_range),
        evaluated("baseline", 0, 20.0, evaluation.CHECK),
        evaluated("v", 0, 20.0 + difference, agreement=agreement),
        evaluated("v", 1, 20.0 + 2 * baseline_range + difference, agreement=agreement),
        evaluated("v", 0, 20.0 + check, evaluation.CHECK),
    ]


@pytest.mark.parametrize(
    ("changed", "wins"),
    [
        ({}, True),
        ({"difference": -0.5}, False),
        ({"difference": 5.0}, False),
        ({"baseline_range": 6.0}, False),
        ({"agreement": 0.85}, False),
        ({"agreement": 0.895}, True),
        ({"check": 1.0}, False),
    ],
)
def test_an_arm_wins_by_more_than_the_spread_with_labels_no_worse_and_by_both_samplers(changed, wins):
    assert summary.judge(study_of(**changed))["v"]["wins"] is wins


def test_the_labels_of_patients_images_are_judged_by_the_classifiers_auc():
    records = [{**record, "agreement": None, "auc": record["agreement"]} for record in study_of(agreement=0.8)]
    verdict = summary.judge(records)["v"]
    assert (verdict["label_figure"], verdict["wins"]) == ("auc", False)


def test_an_arm_that_one_data_set_does_not_favour_does_not_win():
    one, other = study_of(), study_of(difference=2.0)
    assert summary.verdict_table({"one": one}).splitlines()[-1].endswith("| yes |")
    assert summary.verdict_table({"one": one, "other": other}).splitlines()[-1].endswith("| no |")


def test_an_arm_that_one_data_set_lacks_does_not_win():
    lacking = [record for record in study_of() if record["arm"] == "baseline"]
    assert summary.verdict_table({"one": study_of(), "other": lacking}).splitlines()[-1].endswith("| no |")


# Stopping and going on


def test_a_result_that_could_not_be_written_is_not_there(tmp_path):
    kept = store.Store(tmp_path)
    with pytest.raises(TypeError):
        kept.write("flow.seed0", {"value": object()})
    assert kept.read("flow.seed0") is None
    assert kept.records() == []


def test_a_folder_goes_on_with_the_same_settings_alone(tmp_path):
    kept = store.Store(tmp_path)
    kept.claim({"seconds": 60.0, "recipe": {"sizes": (1, 2)}})
    kept.claim({"seconds": 60.0, "recipe": {"sizes": (1, 2)}})
    with pytest.raises(ValueError, match=r"holds a study with seconds 60.0, not 30.0. Use another --output"):
        kept.claim({"seconds": 30.0, "recipe": {"sizes": (1, 2)}})


class StoppedJudge:
    """Measures by counting, and stops before the measurement of this number."""

    class_names = ("a", "b")

    def __init__(self, stop=None):
        self.calls, self.stop = [], stop

    def evaluate(self, network, schedule, sampler, seed, scale, given):
        if len(self.calls) == self.stop:
            raise KeyboardInterrupt
        self.calls.append((sampler, seed, scale))
        record = {"sampler": sampler, "guidance_scale": scale, "fid": float(len(self.calls)), "auc": 1.0}
        return {**record, "agreement": None}, torch.zeros(2, 1, 4, 4), torch.tensor([0, 1])

    def baselines(self):
        return {"real": {"fid": 0.0}}


def run_study(folder, tiny, judge, monkeypatch, names=("v",), with_checks=True, lengths=(1.0,), seeds=(0, 1)):
    trained = []

    def train(arm, given, seed, steps, until, checkpoint):
        trained.append((arm.name, seed, until))
        return training.train(arm, given, seed, steps, until, checkpoint)

    monkeypatch.setattr(running, "train", train)
    monkeypatch.setattr(running, "LEAST_STEPS", 5)
    monkeypatch.setattr(running, "measure_steps", lambda arms, *_: {arm.name: 1.0 for arm in arms})
    how = protocol.PROTOCOLS["demo.yaml"]._replace(with_checks=with_checks, lengths=lengths)
    study = running.Study(store.Store(folder), GivenMaterials(tiny), judge, 0.0, how)
    study.run(arms.choose_arms(names), list(seeds))
    return trained


@pytest.mark.slow
def test_a_study_that_was_stopped_goes_on_and_does_nothing_twice(tmp_path, tiny, monkeypatch):
    whole, first, second = StoppedJudge(), StoppedJudge(stop=4), StoppedJudge()
    run_study(tmp_path / "whole", tiny, whole, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_study(tmp_path / "stopped", tiny, first, monkeypatch)
    trained = run_study(tmp_path / "stopped", tiny, second, monkeypatch)
    assert first.calls + second.calls == whole.calls
    assert trained == [("v", 1, 5)]  # the three before were finished


@pytest.mark.slow
def test_a_study_samples_raw_weights_and_guidance_beside_its_arms(tmp_path, tiny, monkeypatch):
    judge = StoppedJudge()
    run_study(tmp_path, tiny, judge, monkeypatch)
    names = {path.stem for path in (tmp_path / "results").iterdir()}
    assert {"baseline.seed1.raw.unipc_20.guidance1", "v.seed1.averaged.unipc_20.guidance3"} <= names
    assert "v.seed0.averaged.ddim_50.guidance1" in names
    assert "v.seed1.averaged.ddim_50.guidance1" not in names
    assert {path.stem for path in (tmp_path / "pictures").iterdir()} == {name for name in names if "guidance" in name}


def test_each_length_is_one_stretch_of_the_same_training_and_measured_by_itself(tmp_path, tiny, monkeypatch):
    judge = StoppedJudge()
    trained = run_study(tmp_path, tiny, judge, monkeypatch, (), False, (0.6, 1.0), [0])
    assert trained == [("baseline", 0, 3), ("baseline", 0, 5)]
    kept = store.Store(tmp_path)
    records = [kept.read(f"baseline.seed0{part}.training") for part in (".at0.6", "")]
    assert [(record["length"], record["steps"], record["of_steps"]) for record in records] == [
        (0.6, 3, 5),
        (1, 5, 5),
    ]
    assert kept.read("baseline.seed0.at0.6.averaged.unipc_20.guidance1")["length"] == 0.6
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_training_whose_loss_is_not_finite_is_kept_as_a_failure_and_the_others_go_on(tmp_path, tiny, monkeypatch):
    step = training.Training.step

    def diverging(self):
        if self.arm.name == "v" and self.done == 4:
            raise FloatingPointError("v, seed 0, step 4: the loss is nan")
        return step(self)

    monkeypatch.setattr(training.Training, "step", diverging)
    run_study(tmp_path, tiny, StoppedJudge(), monkeypatch, ("v", "l2"), False, (0.6, 1.0), [0])
    kept = store.Store(tmp_path)
    failure = kept.read("v.seed0.failure")
    assert (failure["length"], failure["error"]) == (1.0, "v, seed 0, step 4: the loss is nan")
    assert kept.read("v.seed0.training") is None
    assert kept.read("l2.seed0.averaged.unipc_20.guidance1") is not None


def test_what_another_process_is_doing_is_done_last(tmp_path, tiny, monkeypatch):
    kept, done = store.Store(tmp_path), []
    study = running.Study(kept, GivenMaterials(tiny), None, 0.0, protocol.PROTOCOLS["demo.yaml"])
    held = kept.alone("first")
    held.__enter__()
    monkeypatch.setattr(running.time, "sleep", lambda _: held.__exit__(None, None, None))
    study.share({"first": (1,), "second": (2,)}, done.append)
    assert done == [2, 1]


def test_the_figures_of_a_study_are_written_as_json(tmp_path, tiny, monkeypatch, capsys):
    folder = tmp_path / "study"
    kept = store.Store(folder)
    for record in study_of():
        name = f"{record['arm']}.seed{record['seed']}.{record['sampler']}"
        kept.write(name, {"kind": "evaluation", "kid": 1.0, "precision": 0.5, "recall": 0.5, **record})
    arguments = argparse.Namespace(output=folder, also=[], json=tmp_path / "figures.json")
    quality_study.report(kept, arguments, protocol.PROTOCOLS["demo.yaml"])
    result = json.loads((tmp_path / "figures.json").read_text())
    assert len(result["records"]) == 6
    assert result["rows"][0]["fid"]["by_seed"] == {"0": 20.0}
    assert "| v prediction, L1 | unipc_20 | 16.0 ± 1.0 | -5.0, -5.0 |" in capsys.readouterr().out
