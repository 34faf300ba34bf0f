import json
import math

import pytest
import torch
from scipy.stats import binomtest

from medfusion_monai.evaluation.metrics.intervals import (
    Figure,
    bootstrap_weights,
    figure_around,
    figure_by_factor,
    figure_within,
    mean_figure,
    share_figure,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_figure_goes_to_json_with_its_note():
    text = json.dumps(Figure(1.5, 1.0, 2.0, "12 samples").as_dict())
    assert json.loads(text) == {"value": 1.5, "low": 1.0, "high": 2.0, "note": "12 samples"}


def test_weights_are_counts_of_as_many_items():
    weights = bootstrap_weights(20, 500)
    assert torch.equal(weights, weights.round())
    assert (weights.sum(dim=1) == 20).all()
    assert (weights >= 0).all()
    # the share of items that a resampled set leaves out is (1 - 1/20) ** 20
    assert (weights == 0).double().mean() == pytest.approx(0.95**20, abs=0.01)


def test_seed_decides_the_weights():
    assert torch.equal(bootstrap_weights(9, 3, seed=1), bootstrap_weights(9, 3, seed=1))
    assert not torch.equal(bootstrap_weights(9, 3, seed=1), bootstrap_weights(9, 3, seed=2))


def test_interval_has_the_width_of_the_standard_error():
    values = normal(400)
    figure = mean_figure(values, replicates=4000)
    assert figure.value == pytest.approx(float(values.mean()))
    assert figure.high - figure.low == pytest.approx(2 * 1.96 * float(values.std()) / 20, rel=0.06)


def test_interval_holds_the_true_mean_about_95_times_of_100():
    figures = [mean_figure(normal(60, seed=seed) + 3, replicates=200, seed=seed) for seed in range(400)]
    share = sum(figure.low <= 3 <= figure.high for figure in figures) / len(figures)
    assert 0.91 < share < 0.98


def test_ends_are_the_values_that_leave_a_fortieth_of_ranks_outside_on_each_side():
    figure = figure_around(100.0, torch.arange(1, 200).double())  # a further value has 200 ranks, 5 of them below 5
    assert (figure.low, figure.high) == pytest.approx((5.0, 195.0))
    within = figure_within(100.0, torch.arange(1, 200).double(), 0.0, 200.0)
    assert (within.low, within.high) == pytest.approx((5.0, 195.0))


def test_hundred_replicates_hold_a_further_one_as_often_as_many_do():
    figures = [figure_within(0.0, normal(100, seed=seed), -9.0, 9.0) for seed in range(400)]
    ends = torch.tensor([figure[1:3] for figure in figures], dtype=torch.float64)
    held = (torch.special.ndtr(ends[:, 1]) - torch.special.ndtr(ends[:, 0])).mean()
    assert held == pytest.approx(0.95, abs=0.005)


@pytest.mark.parametrize("replicates", [3, 10, 40])
def test_few_replicates_give_a_wider_interval_that_holds_the_true_value_as_often(replicates):
    means = [mean_figure(normal(60, seed=seed), replicates, seed) for seed in range(400)]
    others = [figure_around(normal(1, seed=seed).item(), normal(replicates, seed=1000 + seed)) for seed in range(400)]
    for figures in (means, others):
        share = sum(figure.low <= 0 <= figure.high for figure in figures) / len(figures)
        assert 0.92 < share < 0.98


def test_few_replicates_of_a_mean_stay_within_the_values():
    figure = mean_figure((torch.arange(20) > 0).double(), replicates=3)
    assert figure.low < figure.value < figure.high
    assert figure.high <= 1


@pytest.mark.parametrize(("right", "count"), [(30, 100), (0, 64), (63, 64), (64, 64)])
def test_share_has_the_interval_of_wilson(right, count):
    figure = mean_figure(torch.arange(count) < right)
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert figure.value == pytest.approx(right / count)
    assert (figure.low, figure.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert figure.note == ""


@pytest.mark.parametrize("share", [0.5, 0.9, 0.98])
def test_interval_of_a_share_holds_it_about_95_times_of_100(share):
    draws = torch.rand(2000, 64, generator=torch.Generator().manual_seed(0)) < share
    figures = [mean_figure(draw) for draw in draws]
    assert 0.92 < sum(figure.low <= share <= figure.high for figure in figures) / len(figures) < 0.985


def test_dependent_items_count_less():
    resampled = 0.8 + 0.05 * normal(4000)  # independent ones of this count have a deviation of 0.02
    figure = share_figure(0.8, 400, resampled)
    expected = share_figure(0.8, 400 * (0.02 / 0.05) ** 2)
    assert (figure.low, figure.high) == pytest.approx((expected.low, expected.high), abs=0.01)
    narrower = share_figure(0.8, 400, 0.8 + 0.001 * normal(4000))
    assert narrower.high - narrower.low == pytest.approx(
        share_figure(0.8, 400)[2] - share_figure(0.8, 400)[1], rel=0.01
    )


def test_factor_is_that_of_the_relative_deviation():
    figure = figure_by_factor(10.0, 2 + 0.2 * normal(4000), widening=1.5)
    assert (figure.low, figure.high) == pytest.approx((10 / math.exp(0.294), 10 * math.exp(0.294)), rel=0.02)
    assert figure_by_factor(0.0, normal(9)) == Figure(0.0, note="0 has no interval")


def test_number_of_replicates_need_not_be_a_round_one():
    assert mean_figure(normal(10), replicates=73).low < mean_figure(normal(10), replicates=73).high


def test_nothing_is_invented_where_there_is_no_spread():
    assert mean_figure(torch.empty(0)) == Figure(None, note="no values")
    assert mean_figure(torch.tensor([2.0])) == Figure(2.0, note="one value has no interval")
    assert mean_figure(torch.tensor([1.0, 3.0]), replicates=0) == Figure(2.0)
    assert mean_figure(torch.tensor([1.0, 3.0]), replicates=1) == Figure(2.0)
    assert "all 5 values are equal" in mean_figure(torch.ones(5)).note


def test_value_that_is_not_finite_gives_no_mean():
    assert mean_figure(torch.tensor([1.0, torch.inf, torch.nan])) == Figure(None, note="2 of 3 values are not finite")


def test_biased_replicates_are_laid_around_the_value():
    figure = figure_around(10.0, 25 + normal(4000), "of 9 samples")
    assert (figure.low, figure.high) == pytest.approx((10 - 1.96, 10 + 1.96), abs=0.15)
    assert figure.note == "of 9 samples"


def test_few_replicates_give_an_interval_by_their_deviation():
    resampled = normal(12)
    figure = figure_around(10.0, 25 + resampled)
    assert figure.high - 10 == pytest.approx(2.201 * resampled.std().item(), rel=1e-4)  # Student's t of 11
    assert 10 - figure.low == pytest.approx(figure.high - 10)


def test_no_replicates_leave_the_interval_out():
    assert figure_around(1.0, torch.empty(0)) == Figure(1.0)
