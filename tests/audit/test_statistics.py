import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from medfusion_monai.audit.statistics import (
    authentic,
    calibrate,
    data_copying,
    leaks,
    nearer_to_training,
    share_figure,
    z_of_ranks,
)


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
    with pytest.raises(ValueError, match="no held-out images"):
        calibrate(torch.empty(0))


def test_leaks_are_below_a_third_of_the_median():
    assert leaks(torch.tensor([1.0, 1.0, 1.0, 0.34, 0.32])).tolist() == [False, False, False, False, True]


def test_z_is_scipys_mann_whitney_statistic():
    generated, held_out = normal(40).abs(), normal(60, seed=1).abs() + 0.2
    u = stats.mannwhitneyu(generated.numpy(), held_out.numpy()).statistic
    expected = (u - 40 * 60 / 2) / math.sqrt(40 * 60 * 101 / 12)
    assert z_of_ranks(generated, held_out) == pytest.approx(expected)
    p = stats.mannwhitneyu(
        generated.numpy(), held_out.numpy(), alternative="less", method="asymptotic", use_continuity=False
    ).pvalue
    assert stats.norm.cdf(z_of_ranks(generated, held_out)) == pytest.approx(p)


def test_ties_count_by_half():
    assert z_of_ranks(torch.ones(5), torch.ones(9)) == 0


def test_copies_give_a_z_far_below_zero_and_new_images_one_near_it():
    training, held_out = normal(400, 3), normal(200, 3, seed=1)
    copies = training[:200] + 0.01 * normal(200, 3, seed=2)
    copying = data_copying(copies, held_out, training)
    fresh = data_copying(normal(200, 3, seed=3), held_out, training)
    assert copying.z < -10
    assert copying.c_t.value < -3
    assert copying.p < 1e-9
    assert copying.cells > 1
    assert abs(fresh.z) < 3
    assert abs(fresh.c_t.value) < 3


def test_c_t_of_one_cell_is_the_z_of_all():
    training, held_out, generated = normal(100, 3), normal(80, 3, seed=1), normal(70, 3, seed=2)
    found = data_copying(generated, held_out, training, cells=1)
    assert found.c_t.value == pytest.approx(found.z)


def test_copying_in_one_cell_shows_in_c_t_where_the_whole_hides_it():
    def at(place, count, seed, spread=1.0):
        return spread * normal(count, 2, seed=seed) + place

    training = torch.cat([at(0.0, 300, 0), at(50.0, 300, 1)])
    held_out = torch.cat([at(0.0, 200, 2), at(50.0, 200, 3)])
    # Copies in one place, images that are too far away in the other.
    generated = torch.cat([training[:200] + 1e-3, at(50.0, 200, 4, 2.5)])
    found = data_copying(generated, held_out, training, cells=2)
    assert found.cells == 2
    one = data_copying(generated[:200], held_out[:200], training[:300], cells=1).z
    two = data_copying(generated[200:], held_out[200:], training[300:], cells=1).z
    assert one < -10 < 3 < two
    assert found.c_t.value == pytest.approx((one + two) / 2)


def test_no_cell_with_enough_images_gives_no_c_t():
    found = data_copying(normal(10, 2), normal(10, 2, seed=1), normal(50, 2, seed=2))
    assert found.c_t.value is None
    assert "20 images" in found.c_t.note


def test_image_nearer_to_a_training_image_than_that_is_to_others_is_not_authentic():
    training = torch.tensor([[0.0], [10.0], [14.0]])
    queries = torch.tensor([[1.0], [-9.5], [-10.5], [13.5], [19.0]])
    assert authentic(queries, training, torch.arange(3)).tolist() == [False, False, True, False, True]


def test_images_of_the_same_patient_are_no_others():
    training = torch.tensor([[0.0], [1.0], [10.0]])
    query = torch.tensor([[-5.0]])
    assert authentic(query, training, torch.arange(3)).tolist() == [True]
    assert authentic(query, training, torch.tensor([7, 7, 8])).tolist() == [False]


def test_repeated_training_image_does_not_hide_its_copies():
    training = torch.tensor([[0.0]] * 40 + [[10.0]])
    assert authentic(torch.tensor([[0.5]]), training, torch.arange(41)).tolist() == [False]


def test_training_images_of_one_patient_are_refused():
    with pytest.raises(ValueError, match="all training images are of one patient"):
        authentic(torch.zeros(1, 1), torch.zeros(3, 1), torch.zeros(3))


def test_probability_to_be_nearer_is_that_of_all_choices_of_training_images():
    queries, training, held_out = normal(6, 2), normal(7, 2, seed=1), normal(3, 2, seed=2)
    to_training, to_held_out = torch.cdist(queries, training), torch.cdist(queries, held_out).amin(dim=1)
    choices = [list(choice) for choice in itertools.combinations(range(7), 3)]
    expected = torch.stack([(to_training[:, choice].amin(dim=1) < to_held_out).double() for choice in choices]).mean(0)
    assert torch.allclose(nearer_to_training(queries, training, held_out), expected)


def test_smooth_images_are_no_nearer_to_training_images_than_to_others():
    training, held_out = normal(300, 8), normal(100, 8, seed=1)
    smooth, copies = 0.3 * normal(500, 8, seed=2), training + 0.01
    assert data_copying(smooth, held_out, training).z < -10
    assert nearer_to_training(smooth, training, held_out).mean().item() == pytest.approx(0.5, abs=0.08)
    # A copy is found if its image is among the third that is drawn; else it is as near to both.
    assert nearer_to_training(copies, training, held_out).mean().item() == pytest.approx(1 / 3 + 2 / 3 / 2, abs=0.06)


def test_more_held_out_than_training_images_are_refused():
    with pytest.raises(ValueError, match="5 held-out and 4 training images"):
        nearer_to_training(normal(1, 2), normal(4, 2), normal(5, 2))
