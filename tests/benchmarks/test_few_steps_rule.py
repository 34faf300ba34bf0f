import math
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
few_steps = import_module("few_steps")


def row(fid=50.0, recall=0.3, auc=0.8, spread=0.0, seed=0):
    figures = {"fid": fid, "recall": recall, "auc": auc}
    noise = np.random.default_rng(seed).normal(0, spread, (few_steps.GROUPS, 3))
    without = [dict(zip(figures, np.array([*figures.values()]) * np.exp(part), strict=True)) for part in noise]
    return {**figures, "precision": 0.2, "without": without, "cpu_seconds": 3.0}


def test_jackknife_of_a_mean_is_its_standard_error():
    """For a mean, the delete-a-group jackknife gives the standard error of the means of the groups."""
    groups = np.random.default_rng(1).normal(10, 1, few_steps.GROUPS)
    arm = {"fid": groups.mean(), "without": [{"fid": np.delete(groups, at).mean()} for at in range(few_steps.GROUPS)]}
    base = {"fid": 1.0, "without": [{"fid": 1.0}] * few_steps.GROUPS}
    value, low, high = few_steps.ratio(arm, base, "fid")
    assert value == pytest.approx(groups.mean())
    error = groups.std(ddof=1) / math.sqrt(len(groups)) / groups.mean()
    assert math.log(high / low) / 2 == pytest.approx(2.262 * error, rel=0.05)


@pytest.mark.parametrize(
    ("arm", "equal"),
    [
        (row(fid=52), True),
        (row(fid=56), False),
        (row(fid=40, recall=0.26), False),
        (row(auc=0.7), False),
        (row(fid=52, spread=0.1), False),  # the interval is too wide
        (row(recall=0.0), False),
    ],
)
def test_equality_is_shown_by_intervals(arm, equal):
    assert few_steps.is_equal(arm, row()) is equal


def test_differences_that_both_arms_share_do_not_widen_the_interval():
    arm, base = row(fid=52, spread=0.1), row(spread=0.1)
    assert few_steps.ratio(arm, base, "fid") == pytest.approx((1.04, 1.04, 1.04))


def test_table_has_a_row_per_arm():
    real = dict.fromkeys(("fid", "recall", "auc", "precision"), 1.0)
    lines = few_steps.table({few_steps.UNTUNED: row(), "4 steps": row(fid=52), few_steps.REAL: real}).split("\n")
    assert len(lines) == 5
    assert lines[3].startswith("| 4 steps | 52.0 | 1.040 (1.040 to 1.040) | 0.300 |")
    assert lines[3].endswith("| yes |")
    assert {line.count("|") for line in lines} == {11}
