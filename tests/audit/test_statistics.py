import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from medfusion_monai.audit.statistics import calibrate, leaks, nearer_to_training, share_figure


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("positive", "count"), [(0, 200), (1, 50), (37, 100), (100, 100)])
def test_interval_of_a_share_is_scipys_exact_one(positive, count):
    expected = stats.binomtest(positive, count).proportion_ci(0.95, "exact")
    figure = share_figure(positive, count)
    assert (figure.low, figure.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert figure.value == positive / count


def test_threshold_is_the_rank_of_the_conformal_rule():
    scores = torch.arange(1, 300) / 100  # 299: 1% of 300 is 3
    assert calibrate(scores.flip(0)) == (pytest.approx(0.03), pytest.approx(0.01), 299)


def test_rank_is_rounded_down():
    assert calibrate(torch.arange(1, 299) / 100) == (pytest.approx(0.02), pytest.approx(2 / 299), 298)


def test_few_images_give_the_smallest_rate_that_they_can():
    found = calibrate(torch.arange(1, 50) / 10)
    assert found == (pytest.approx(0.1), pytest.approx(1 / 50), 49)


def test_false_alarms_over_many_calibrations_are_at_most_the_rate():
    rng = np.random.default_rng(0)
    alarms = [float(rng.normal() < calibrate(torch.from_numpy(rng.normal(size=99))).threshold) for _ in range(4_000)]
    assert np.mean(alarms) == pytest.approx(0.01, abs=4 * math.sqrt(0.01 / 4_000))


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
