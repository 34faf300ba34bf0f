"""What distances to training images say of a whole set: thresholds, rates with intervals, tests."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.cluster.vq import kmeans2
from scipy.special import betaincinv, ndtr
from torch import Tensor

from medfusion_monai.evaluation.metrics.intervals import LEVEL, Figure
from medfusion_monai.evaluation.metrics.neighbours import nearest_neighbours

FALSE_ALARMS = 0.01
"""Share of images that are no copies which may be taken for copies."""
LEAST = 50
"""Fewest images of which a rate is reported."""
IN_A_CELL = 20
"""Held-out and generated images that a cell of C_T must have each, for the normal approximation."""

_ROWS = 512  # of a matrix of distances at a time
_LEAK = 1 / 3  # of the median score: what is left of a held-out image's distance if it is a training image once more


class Calibration(NamedTuple):
    """A threshold from images that are no copies.

    Attributes:
        threshold: a score below it is a copy.
        rate: share of images like the held-out ones that score below it, at most.
        held_out: number of images behind it.
    """

    threshold: float
    rate: float
    held_out: int


class DataCopying(NamedTuple):
    """The train-against-held-out test.

    Attributes:
        z: for all images together.
        p: probability of so small a z, or a smaller one, without copying.
        c_t: the mean of the cells.
        cells: how many cells had enough images.
    """

    z: float
    p: float
    c_t: Figure
    cells: int


def calibrate(scores: Tensor, rate: float = FALSE_ALARMS) -> Calibration:
    """Find the score below which at most ``rate`` of new images of the same kind lie, by split-conformal ranks.

    A new image that is exchangeable with n held-out ones lies below their k-th smallest score with probability
    k / (n + 1) at most (Vovk et al. 2005). With fewer than 99 images 1% cannot be had: then it is the
    smallest score, at the rate of 1 / (n + 1).

    Args:
        scores: (n,) of held-out images.
        rate: of false alarms.

    Raises:
        ValueError: if there are no scores.
    """
    count = len(scores)
    if not count:
        raise ValueError("there are no held-out images to find a threshold from")
    rank = max(1, math.floor(rate * (count + 1) + 1e-9))
    return Calibration(float(scores.sort().values[rank - 1]), rank / (count + 1), count)


def leaks(scores: Tensor) -> Tensor:
    """Return which held-out images (n,) are training images once more: their scores are below a third of the median.

    They are no images without training, and would take the threshold down with them.
    """
    return scores < _LEAK * scores.median()


def share_figure(positive: int, count: int, note: str = "") -> Figure:
    """Return a share with its exact interval (Clopper and Pearson 1934), which is none too narrow near 0 and 1."""
    tail = (1 - LEVEL) / 2
    low = float(betaincinv(positive, count - positive + 1, tail)) if positive else 0.0
    high = float(betaincinv(positive + 1, count - positive, 1 - tail)) if positive < count else 1.0
    return Figure(positive / count, low, high, note)


def authentic(queries: Tensor, training: Tensor, patients: Tensor) -> Tensor:
    """Return which images are authentic (Alaa et al. 2022).

    An image is not if it is nearer to its nearest training image than that one is to any other training image. Those
    of the same patient count as none other here, nor do repetitions of an image, which would hide its copies.

    Args:
        queries: features (M, D).
        training: features (N, D), of at least two patients.
        patients: (N,), a number a patient.

    Returns:
        (M,) of booleans.

    Raises:
        ValueError: all training images are of one patient.
    """
    if len(patients.unique()) < 2:
        raise ValueError("all training images are of one patient: there is no other one to compare distances with")
    distances, places = nearest_neighbours(queries, training)
    wanted = places[:, 0].unique()
    radii = _to_other_patients(training, patients, wanted)
    return distances[:, 0] >= radii[torch.searchsorted(wanted, places[:, 0])]


def _to_other_patients(training: Tensor, patients: Tensor, wanted: Tensor) -> Tensor:
    """Distances (W,) of some training images to the nearest that is of another patient and not the same image."""
    number, radii = 2, torch.full((len(wanted),), torch.inf, dtype=torch.float64)
    while bool(radii.isinf().any()):
        open_ = radii.isinf().nonzero()[:, 0]
        number = min(2 * number, len(training))
        found, near = nearest_neighbours(training[wanted[open_]], training, k=number)
        same = (patients[near] == patients[wanted[open_], None]) | (found == 0)
        radii[open_] = found.masked_fill(same, torch.inf).amin(dim=1)
        if number == len(training):
            break
    return radii


def z_of_ranks(generated: Tensor, held_out: Tensor) -> float:
    """Return the Mann-Whitney statistic as a z-score: negative where generated distances are the smaller ones.

    Z_U of Meehan et al. 2020: U counts the pairs in which the generated distance is the larger one, ties
    by half.

    Args:
        generated: distances (m,) to the training images.
        held_out: likewise (n,).
    """
    m, n = len(generated), len(held_out)
    ordered = held_out.double().sort().values
    below = torch.searchsorted(ordered, generated.double())
    not_above = torch.searchsorted(ordered, generated.double(), right=True)
    u = float((below + not_above).double().sum()) / 2
    return (u - m * n / 2) / math.sqrt(m * n * (m + n + 1) / 12)


def nearer_to_training(queries: Tensor, training: Tensor, held_out: Tensor) -> Tensor:
    """Return the probability that a query is nearer to n random training images than to all n held-out ones.

    Without memorisation the mean is 0.5, whatever the queries are like: smooth images lie near to all others, which
    makes authenticity and z look like copying. It is the expectation over all choices of n training images, by the rank
    of the nearest held-out image among the distances to training images.

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
        raise ValueError(f"{number} held-out and {count} training images: more held-out ones cannot be compared")
    limit = nearest_neighbours(queries, held_out)[0][:, 0]
    shift = training.double().mean(dim=0)  # products cancel less
    rows = zip((queries.double() - shift).split(_ROWS), limit.split(_ROWS), strict=True)
    references = training.double() - shift
    nearer = torch.cat([(torch.cdist(some, references) < ends[:, None]).sum(dim=1) for some, ends in rows]).double()
    # None of the nearer ones is drawn: C(N - r, n) / C(N, n), by logarithms of factorials.
    total, drawn = torch.tensor(float(count)), float(number)
    left = total - nearer
    log_none = torch.lgamma(left + 1) - torch.lgamma((left - drawn).clamp(min=0) + 1)
    log_none = log_none - (torch.lgamma(total.double() + 1) - torch.lgamma(total.double() - drawn + 1))
    return 1 - torch.where(left >= drawn, log_none.exp(), torch.zeros_like(left))


def data_copying(generated: Tensor, held_out: Tensor, training: Tensor, cells: int = 5, seed: int = 0) -> DataCopying:
    """Test whether generated images lie nearer to the training images than held-out ones do (Meehan et al. 2020).

    ``c_t`` is their C_T: the mean of Z_U over the cells of k-means of the training images, weighted by the cells'
    shares of held-out images; distances are to training images of the cell. Far below 0 (below -3, say) is copying,
    far above 0 is a set that is further from the training images than it should be.

    Args:
        generated: features (m, D).
        held_out: features (n, D).
        training: features (N, D).
        cells: of k-means.
        seed: of k-means.
    """
    sets = (generated, held_out)
    z = z_of_ranks(*(nearest_neighbours(each, training)[0][:, 0] for each in sets))
    centres, labels = kmeans2(training.double().numpy(), min(cells, len(training)), minit="++", rng=seed)
    places = [nearest_neighbours(each.double(), torch.from_numpy(centres))[1][:, 0] for each in sets]
    total = weight = 0.0
    used = 0
    for cell in range(len(centres)):
        members = [each[place == cell] for each, place in zip(sets, places, strict=True)]
        of_training = training[torch.from_numpy(labels == cell)]
        if min(map(len, members)) < IN_A_CELL or not len(of_training):
            continue
        used += 1
        weight += len(members[1])
        total += len(members[1]) * z_of_ranks(*(nearest_neighbours(each, of_training)[0][:, 0] for each in members))
    c_t = Figure(total / weight) if used else Figure(None, note=f"no cell has {IN_A_CELL} images of both sets")
    return DataCopying(z, float(ndtr(z)), c_t, used)
