import sys
from importlib import import_module
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
against_gan = import_module("against_gan")
COSTS = {"autoencoder": 0.5, "diffusion": 2.0, "gan": 4.0}
RECIPE = {"autoencoder": 3000, "diffusion": 7000}


def rows(distances, recall=0.3, auc=0.8):
    return [{"fid": each, "precision": 0.5, "recall": recall, "auc": auc, "cpu_seconds": 9.0} for each in distances]


def test_both_models_get_the_same_seconds():
    ours, theirs = (against_gan.steps_within(COSTS, ratio, 15_500.0) for ratio in (RECIPE, {"gan": 1}))
    assert ours == RECIPE
    assert theirs == {"gan": 3872}
    for steps in (ours, theirs):
        assert sum(COSTS[phase] * count for phase, count in steps.items()) == pytest.approx(15_500, rel=0.01)


def test_each_training_ends_with_its_last_validation():
    keys = against_gan.interval_keys({"gan": 3872})
    assert keys == {"gan_steps": 3872, "gan_val_interval": 968}


def test_plan_states_the_cost_of_all_trainings():
    assert "8 trainings and 6 of a quarter: 40.9 processor hours" in against_gan.plan(COSTS, RECIPE, 15_500.0, 4)


def test_pair_with_the_lowest_distance_is_chosen_for_the_gan():
    records = {pair: {"fid": float(index)} for index, pair in enumerate(reversed(against_gan.GRID))}
    assert against_gan.chosen(records) == against_gan.GRID[-1]
    assert against_gan.gan_keys(2.0e-4, 0.1, [64, 64]) == {"gan_lr": [2.0e-4, 5.0e-5], "gan_penalty": [0.2, 0.1 * 0.2]}


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        (rows([90, 91, 92, 93]), "diffusion has the lower distance"),
        (rows([110, 111, 112, 113]), "gan has the lower distance"),
        (rows([90, 91, 92, 101]), "no verdict: the distances differ by no more"),
        (rows([98, 80, 99, 97]), "no verdict: the distances differ by no more"),
        (rows([90, 91, 92]), "no verdict: 3 seeds, 4 are needed"),
        (rows([90, 91, 92, 93], recall=0.2), "diffusion has the lower distance, but the lower recall"),
        (rows([110, 111, 112, 113], auc=0.9), "gan has the lower distance, but the lower auc"),
    ],
)
def test_model_wins_only_if_the_distances_differ_by_more_than_those_of_seeds(ours, said):
    assert against_gan.verdict({"diffusion": ours, "gan": rows([100] * len(ours))}).startswith(said)


def test_table_has_a_row_per_model_and_one_of_real_images():
    text = against_gan.table({"diffusion": rows([90]), "gan": rows([100])}, rows([10])[0])
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:]] == ["diffusion", "gan", "real test images"]
