import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from medfusion_monai.audit.statistics import calibrate, false_alarms, leaks, nearer_to_training, share_figure


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("positive", "count"), [(0, 200), (1, 50), (37, 100), (100, 100)])
def test_interval_of_a_share_is_scipys_exact_one(positive, count):
    expected = stats.binomtest(positive, count).proportion_ci(0.95, "exact")
    figure = share_figure(positive, count)
    assert (figure.low, figure.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert figure.value == positive / count


def usual(count):
    """Scores whose logarithms have the quantiles of a normal distribution of standard deviation 0.2."""
    return torch.from_numpy(np.exp(0.2 * stats.norm.ppf((np.arange(count) + 0.5) / count)))


def test_threshold_is_the_quantile_of_the_normal_distribution_at_a_tenth_of_the_rate():
    found = calibrate(usual(299).flip(0))
    assert found.threshold == pytest.approx(math.exp(0.2 * stats.norm.ppf(0.001)), rel=0.01)
    assert found[1:] == (pytest.approx(0.01), 299, 0)


@pytest.mark.parametrize(("count", "rank"), [(299, 3), (298, 2)])
def test_threshold_is_the_rank_of_the_conformal_rule_where_that_is_lower(count, rank):
    scores = usual(count)
    scores[:4] = torch.tensor([-3.28, -3.24, -3.2, -3.16], dtype=torch.float64).mul(0.2).exp()
    assert calibrate(scores) == (pytest.approx(float(scores[rank - 1])), pytest.approx(rank / (count + 1)), count, 0)


def test_few_images_give_the_smallest_rate_that_they_can():
    scores = usual(49)
    scores[0] = math.exp(-0.2 * 3.2)
    assert calibrate(scores) == (pytest.approx(float(scores[0])), pytest.approx(1 / 50), 49, 0)


@pytest.mark.parametrize("count", [50, 200])
def test_near_duplicates_hardly_move_the_threshold(count):
    alone, found = calibrate(usual(count)), calibrate(torch.cat([usual(count), torch.tensor([0.2, 0.3])]))
    assert found.threshold == pytest.approx(alone.threshold, rel=0.08)
    assert found[1:] == (alone.rate, count, 2)


def test_false_alarms_over_many_calibrations_are_at_most_the_rate():
    rng = np.random.default_rng(0)
    drawn = np.exp(0.2 * rng.normal(size=(4_000, 100)))
    alarms = [row[0] < calibrate(torch.from_numpy(row[1:])).threshold for row in drawn]
    assert 0.0005 < np.mean(alarms) <= 0.01


def test_false_alarms_are_those_of_either_half_by_the_other():
    scores = usual(200)[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    scores[[4, 9, 20]] = 0.1
    assert false_alarms(scores).value == 3 / 200


def test_no_scores_give_no_threshold():
    with pytest.raises(ValueError, match="no scores of held-out images"):
        calibrate(torch.empty(0))


def test_leaks_are_below_a_third_of_the_median():
    assert leaks(torch.tensor([1.0, 1.0, 1.0, 0.34, 0.32])).tolist() == [False, False, False, False, True]


def test_probability_to_be_nearer_is_that_of_all_choices_of_training_images():
    queries, training, held_out = normal(6, 2), normal(7, 2, seed=1), normal(3, 2, seed=2)
    to_training, to_held_out = torch.cdist(queries, training), torch.cdist(queries, held_out).amin(dim=1)
    choices = [list(choice) for choice in itertools.combinations(range(7), 3)]
    expected = torch.stack([(to_training[:, choice].amin(dim=1) < to_held_out).double() for choice in choices]).mean(0)
    assert torch.allclose(nearer_to_training(queries, training, held_out), expected)


def test_smooth_images_are_no_nearer_to_training_images_than_to_others():
    training, held_out = normal(300, 8), normal(100, 8, seed=1)
    smooth, copies = 0.3 * normal(500, 8, seed=2), training + 0.01
    assert nearer_to_training(smooth, training, held_out).mean().item() == pytest.approx(0.5, abs=0.08)
    # A copy is found if its image is among the third that is drawn; else it is as near to both.
    assert nearer_to_training(copies, training, held_out).mean().item() == pytest.approx(1 / 3 + 2 / 3 / 2, abs=0.06)


def test_more_held_out_than_training_images_are_refused():
    with pytest.raises(ValueError, match="5 held-out and 4 training images"):
        nearer_to_training(normal(1, 2), normal(4, 2), normal(5, 2))
