"""Thresholds, rates and intervals from the distances of a set to training images."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.special import betaincinv, ndtr, ndtri
from torch import Tensor

from medfusion_monai.evaluation.metrics.intervals import LEVEL, Figure
from medfusion_monai.evaluation.metrics.neighbours import nearest_neighbours

FALSE_ALARMS = 0.01
"""Accepted share of false alarms among images that are not copies."""
LEAST = 50
"""Fewest images for which a rate is reported."""

_ROWS = 512  # of a matrix of distances at a time
_APART = 3.3  # standard deviations below the median of the logarithms: 1 in 2,000 of a normal distribution
_MARGIN = 0.1  # of the rate, for the quantile of the normal distribution: the tail of real scores is somewhat heavier
_LEAK = 1 / 3  # of the median score: a held-out image with less is also a training image


class Calibration(NamedTuple):
    """A threshold from images that are not copies.

    Attributes:
        threshold: scores below it are copies.
        rate: share of images like the held-out ones that score below it, at most.
        held_out: number of images behind it.
        apart: number of others, whose scores are so low that they were left out.
    """

    threshold: float
    rate: float
    held_out: int
    apart: int = 0


def calibrate(scores: Tensor, rate: float = FALSE_ALARMS) -> Calibration:
    """Find the score below which at most ``rate`` of new images of the same kind lie, unmoved by a few low scores.

    The logarithms of the scores are compared with a normal distribution of the same median and 16th percentile, one
    standard deviation below it. Scores more than 3.3 of these below the median are left out: one near-duplicate of a
    training image would otherwise be the threshold. The threshold is the smaller of two: the k-th smallest of the
    other n scores, below which a new image that is exchangeable with them lies with probability k / (n + 1) at most
    (Vovk et al. 2005), and the normal distribution's quantile at a tenth of the rate, which varies less. With fewer
    than 99 images 1% cannot be guaranteed: k is then 1, at a rate of 1 / (n + 1).

    Args:
        scores: (n,) of held-out images, not negative.
        rate: of false alarms.

    Raises:
        ValueError: if there are no scores.
    """
    if not len(scores):
        raise ValueError("there are no scores of held-out images: a threshold needs at least one")
    logs = scores.double().clamp(min=1e-12).log().sort().values
    middle, below = logs.quantile(torch.tensor([0.5, float(ndtr(-1.0))], dtype=torch.float64)).tolist()
    kept = logs >= middle - _APART * (middle - below)
    left = scores.sort().values[kept]
    rank = max(1, math.floor(rate * (len(left) + 1) + 1e-9))
    usual = math.exp(middle + float(ndtri(_MARGIN * rate)) * (middle - below))
    threshold = min(float(left[rank - 1]), usual)
    return Calibration(threshold, rank / (len(left) + 1), len(left), len(scores) - len(left))


def false_alarms(scores: Tensor) -> Figure:
    """Return the share of held-out images (n,) below a threshold that the other half of them calibrates."""
    halves = scores[0::2], scores[1::2]
    alarms = sum(int((scores < calibrate(other).threshold).sum()) for scores, other in (halves, halves[::-1]))
    return share_figure(alarms, len(scores))


def leaks(scores: Tensor) -> Tensor:
    """Return which held-out images (n,) are also training images: their scores are below a third of the median.

    They were trained on and would lower the threshold.
    """
    return scores < _LEAK * scores.median()


def share_figure(positive: int, count: int, note: str = "") -> Figure:
    """Return a share with its exact interval (Clopper and Pearson 1934), which is not too narrow near 0 and 1."""
    tail = (1 - LEVEL) / 2
    low = float(betaincinv(positive, count - positive + 1, tail)) if positive else 0.0
    high = float(betaincinv(positive + 1, count - positive, 1 - tail)) if positive < count else 1.0
    return Figure(positive / count, low, high, note)


def nearer_to_training(queries: Tensor, training: Tensor, held_out: Tensor) -> Tensor:
    """Return the probability that a query is nearer to n random training images than to all n held-out ones.

    Without memorisation the mean is 0.5, whatever the queries are like: smooth images lie near all others, held-out
    ones included. It is the expectation over all choices of n training images, from the rank of the nearest held-out
    image among the distances to training images.

    Args:
        queries: features (M, D).
        training: features (N, D).
        held_out: features (n, D), n at most N.

    Returns:
        (M,).

    Raises:
        ValueError: more held-out than training images.
    """
    count, number = len(training), len(held_out)
    if number > count:
        raise ValueError(
            f"{number} held-out and {count} training images: give at most as many held-out as training images"
        )
    limit = nearest_neighbours(queries, held_out)[0][:, 0]
    shift = training.double().mean(dim=0)  # less cancellation in products
    rows = zip((queries.double() - shift).split(_ROWS), limit.split(_ROWS), strict=True)
    references = training.double() - shift
    nearer = torch.cat([(torch.cdist(some, references) < ends[:, None]).sum(dim=1) for some, ends in rows]).double()
    # None of the nearer ones is drawn: C(N - r, n) / C(N, n), by logarithms of factorials.
    total, drawn = torch.tensor(float(count)), float(number)
    left = total - nearer
    log_none = torch.lgamma(left + 1) - torch.lgamma((left - drawn).clamp(min=0) + 1)
    log_none = log_none - (torch.lgamma(total.double() + 1) - torch.lgamma(total.double() - drawn + 1))
    return 1 - torch.where(left >= drawn, log_none.exp(), torch.zeros_like(left))
