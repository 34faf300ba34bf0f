"""Shares of the classes, and the order that produces them."""

from collections import Counter

import numpy as np
import pytest

from medfusion_monai.data.datalist import DataError
from medfusion_monai.data.preparing.splits import apportion
from medfusion_monai.data.training.class_shares import balanced_order, parse_class_shares, training_shares, true_shares

CLASSES = ["common", "rare"]
LABELS = np.array([0] * 60 + [1] * 4)


def passes(labels, shares, count, seed=0):
    return np.concatenate([balanced_order(labels, shares, seed, number) for number in range(count)])


def test_pass_has_the_counts_of_the_shares():
    for shares, counts in (([0.5, 0.5], [32, 32]), ([0.75, 0.25], [48, 16]), ([1.0, 0.0], [64, 0])):
        order = balanced_order(LABELS, shares, 0, 3)
        assert np.bincount(LABELS[order], minlength=2).tolist() == counts


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.7, 0.2, 0.1], [0.3, 0.01, 0.69]])
def test_share_of_every_stretch_is_exact_to_within_one_image_a_class(shares):
    labels = np.arange(300) % 7 % len(shares)
    drawn = labels[passes(labels, shares, 4)]
    places = np.arange(1, len(drawn) + 1)
    for label, share in enumerate(shares):
        off = np.cumsum(drawn == label) - places * share
        assert off.max() - off.min() < 2 * len(shares)


def test_all_images_of_a_class_come_before_one_comes_again():
    drawn = passes(LABELS, [0.5, 0.5], 5)  # 160 draws of 4 rare images and of 60 common ones
    for label, size in enumerate((60, 4)):
        of_class = drawn[LABELS[drawn] == label]
        for start in range(0, len(of_class), size):
            turn = of_class[start : start + size]
            assert len(set(turn.tolist())) == len(turn)
    assert set(Counter(drawn[LABELS[drawn] == 1].tolist()).values()) == {40}


def test_order_of_a_pass_depends_on_seed_and_number_alone():
    later = balanced_order(LABELS, [0.5, 0.5], 3, 9)
    assert np.array_equal(later, balanced_order(LABELS, [0.5, 0.5], 3, 9))
    assert not np.array_equal(later, balanced_order(LABELS, [0.5, 0.5], 3, 10))
    assert not np.array_equal(later, balanced_order(LABELS, [0.5, 0.5], 4, 9))


def test_sequence_of_labels_is_random():
    drawn = LABELS[passes(LABELS, [0.5, 0.5], 20)]
    assert 0.3 < (drawn[0::2] == 0).mean() < 0.7


def test_smallest_share_above_zero_is_seen_in_every_pass():
    assert np.bincount(LABELS[balanced_order(LABELS, [0.999, 0.001], 0, 0)]).tolist() == [63, 1]


@pytest.mark.parametrize(
    ("total", "shares", "counts"),
    [
        (10, [0.5, 0.5], [5, 5]),
        (100, [0.97, 0.03], [97, 3]),
        (10, [0.97, 0.03], [10, 0]),
        (3, [1 / 3, 1 / 3, 1 / 3], [1, 1, 1]),
        (7, [0.45, 0.35, 0.2], [3, 3, 1]),  # quotas 3.15, 2.45, 1.4
        (1, [0.5, 0.5], [1, 0]),
        (64, [0.29, 0.71], [19, 45]),
        (10, [0.1] * 10, [1] * 10),
    ],
)
def test_largest_remainder(total, shares, counts):
    assert apportion(total, shares) == counts


def test_shared_out_counts_sum_to_the_total_and_stay_within_one_of_the_quota():
    source = np.random.default_rng(0)
    for _ in range(200):
        shares = source.dirichlet(np.ones(source.integers(1, 9))).tolist()
        total = int(source.integers(1, 5000))
        counts = apportion(total, shares)
        assert sum(counts) == total
        assert all(abs(count - total * share) < 1 for count, share in zip(counts, shares, strict=True))


def test_true_shares_count_classes_without_images():
    assert true_shares([0, 0, 0, 1], 3) == [0.75, 0.25, 0.0]


def test_equal_is_the_same_share_for_every_class_and_none_leaves_the_data_as_it_is():
    assert training_shares("equal", CLASSES, LABELS) == [0.5, 0.5]
    assert training_shares([0.9, 0.1], CLASSES, LABELS) == [0.9, 0.1]
    assert training_shares(None, CLASSES, LABELS) is None


@pytest.mark.parametrize("shares", [None, "equal", [0.5, 0.5]])
def test_class_without_images_is_named_unless_its_share_is_zero(shares):
    with pytest.raises(DataError, match=r"classes \['rare'\] have no training images.*share 0"):
        training_shares(shares, CLASSES, [0, 0])
    assert training_shares([1.0, 0.0], CLASSES, [0, 0]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ("even", "must be equal, a list of 2 shares .* received 'even'"),
        ("null", "received 'null'"),
        (0.5, "received 0.5"),
        ([], r"received \[\]"),
        ([0.2, 0.3, 0.5], "received 3 shares"),
        ([0.5, 0.6], r"sum to 1, received \[0.5, 0.6\]"),
        ([1.5, -0.5], "numbers of 0 or more"),
        ([True, False], "numbers of 0 or more"),
        (["0.5", "0.5"], "numbers of 0 or more"),
        ([float("nan"), 0.5], "numbers of 0 or more"),
    ],
)
def test_shares_that_make_no_sense_are_refused(shares, message):
    with pytest.raises(ValueError, match=message):
        parse_class_shares(shares, 2, "equal")
