"""Distances from generated to training images, relative to their distances from images that were not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from medfusion_monai.audit.fingerprints import FLIPS, Prints, coarse, flipped
from medfusion_monai.evaluation.metrics.neighbours import nearest_neighbours

MEASURES = ("pixels", "structure", "features")
JUDGES = MEASURES[:2]
"""The measures in the score. Features, which found no more copies but more false alarms, are only reported."""
CANDIDATES = 8
"""Nearest images by coarse pixels, and as many by features, that are compared exactly."""
SCALE_NEIGHBOURS = 5
"""Number of nearest held-out images whose mean distance is the scale."""
MAX_SHIFT = 2
"""Pixels of a fingerprint by which a copy may be shifted: a thirty-second of the image."""

_WINDOW, _STRIDE = 7, 3  # of the local correlations, in pixels of a fingerprint
_FLAT = 0.02  # variance below which a window counts as flat; a fingerprint has 1
_AT_ONCE = 8  # queries; bounds the memory of their pairs
_LEAST = 1e-3  # half precision does not resolve smaller ratios


class Matches(NamedTuple):
    """The training image closest to each query.

    Attributes:
        scores: (M,), see ``Matcher.match``; about 1 for an image that is not a copy, near 0 for a copy.
        places: (M,), index of that training image.
        distances: (M, K), to that image by each measure.
        scales: (M, K), divisors of the distances.
        nearest: (M, K), distance to the nearest training image by each measure on its own.
    """

    scores: Tensor
    places: Tensor
    distances: Tensor
    scales: Tensor
    nearest: Tensor


class Matcher:
    """Finds the training image that an image may be a copy of.

    Args:
        training: of the training images.
        held_out: of images that were not trained on, as similar to the training images as possible.
        flips: key of ``FLIPS``: how a copy may be mirrored.

    Raises:
        ValueError: for fewer held-out images than the scale needs, no training images, or features for one set only.
    """

    def __init__(self, training: Prints, held_out: Prints, flips: str = "horizontal") -> None:
        if flips not in FLIPS:
            raise ValueError(f"flips is {flips!r}: use one of {', '.join(FLIPS)}")
        if not len(training.fine) or len(held_out.fine) <= SCALE_NEIGHBOURS:
            raise ValueError(
                f"{len(training.fine)} training and {len(held_out.fine)} held-out images: give at least 1 and "
                f"{SCALE_NEIGHBOURS + 1}"
            )
        if (training.features is None) != (held_out.features is None):
            raise ValueError(
                "only one of the training and held-out sets has features: give features for both or for neither"
            )
        self.axes = FLIPS[flips]
        self.training, self.held_out = _References(training), _References(held_out)

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the distances, in order."""
        return MEASURES if self.training.features is not None else JUDGES

    @torch.no_grad()
    def match(self, queries: Prints) -> Matches:
        """Find the closest training image of each query, independently of the other queries.

        The score of a query x is the minimum over training images t of the geometric mean of d(x, t) / s(x) for two
        measures: pixels (root mean square difference at the best shift) and structure (1 - mean local correlation
        there). The Euclidean distance of features is reported beside them. s(x) is the mean distance of x to its
        nearest held-out images by the same measure, so an image that resembles all others is not mistaken for a copy.
        Dividing by the distances to neighbours follows Carlini et al. 2023, who take training images as neighbours;
        that hides copies of an image that is repeated among them.

        Held-out images can be queries too: images of the query's own patient do not count as its neighbours.
        """
        places = self.training.candidates(queries, self.axes)
        around = self.held_out.candidates(queries, self.axes)
        parts = [
            self._match(queries.select(rows), places[rows], around[rows])
            for rows in torch.arange(len(queries.fine)).split(_AT_ONCE)
        ]
        return Matches(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _match(self, queries: Prints, places: Tensor, around: Tensor) -> Matches:
        distances = self.training.distances(queries, self.axes, places)
        nearest = self.held_out.distances(queries, self.axes, around)
        scales = nearest.topk(SCALE_NEIGHBOURS, dim=1, largest=False).values.mean(dim=1).clamp(min=1e-6)  # (M, K)
        scores, chosen = _geometric_mean((distances / scales[:, None])[..., : len(JUDGES)]).min(dim=1)
        rows = torch.arange(len(scores))
        return Matches(scores, places[rows, chosen], distances[rows, chosen], scales, distances.amin(dim=1))


class _References:
    """Images that are searched for neighbours."""

    def __init__(self, prints: Prints) -> None:
        self.fine, self.patients = prints.fine, prints.patients
        self.features = None if prints.features is None else prints.features[:, 0]
        self.coarse = coarse(prints.fine)
        self.most = int(prints.patients.unique(return_counts=True)[1].max())

    def candidates(self, queries: Prints, axes: Sequence[tuple[int, ...]]) -> Tensor:
        """Return indices (M, P) of the nearest images by coarse pixels and by features, padded with -1.

        Raises:
            ValueError: if these images have features and the queries have none.
        """
        found = [self._nearest([coarse(flipped(queries.fine, turn)) for turn in axes], self.coarse, queries.patients)]
        if self.features is not None:
            if queries.features is None:
                raise ValueError(
                    "the queries have no features, but the images they are compared with do: give features for both"
                )
            found.append(self._nearest(list(queries.features.unbind(dim=1)), self.features, queries.patients))
        return _each_once(torch.cat(found, dim=1))

    def distances(self, queries: Prints, axes: Sequence[tuple[int, ...]], places: Tensor) -> Tensor:
        """Return distances (M, P, K) to candidates, the minimum over orientations; infinite for padding."""
        chosen = places.clamp(min=0)
        by_flip = []
        for index, turn in enumerate(axes):
            columns = list(_aligned(flipped(queries.fine, turn), self.fine[chosen]))
            if self.features is not None and queries.features is not None:
                columns.append((queries.features[:, index, None].float() - self.features[chosen].float()).norm(dim=2))
            by_flip.append(torch.stack(columns, dim=2))
        return torch.stack(by_flip).amin(dim=0).masked_fill((places < 0)[:, :, None], torch.inf)

    def _nearest(self, vectors: list[Tensor], references: Tensor, patients: Tensor) -> Tensor:
        """Return indices (M, k) of the nearest references over orientations; -1 for those of the query's patient."""
        number = min(len(references), CANDIDATES + self.most)
        pairs = [nearest_neighbours(each.float(), references.float(), k=number) for each in vectors]
        distances = torch.cat([distance for distance, _ in pairs], dim=1)
        places = torch.cat([place for _, place in pairs], dim=1)
        distances = distances.masked_fill(self.patients[places] == patients[:, None], torch.inf)
        order = distances.argsort(dim=1, stable=True)
        places, distances = places.gather(1, order), distances.gather(1, order)
        places = _each_once(places.masked_fill(distances == torch.inf, -1))
        order = (places < 0).long().argsort(dim=1, stable=True)  # valid ones to the front, nearest first
        return places.gather(1, order)[:, :CANDIDATES]


def _each_once(places: Tensor) -> Tensor:
    """Replace indices (M, P) that occur further left in their row by -1."""
    repeated = (places[:, :, None] == places[:, None, :]).tril(diagonal=-1).any(dim=2)
    return places.masked_fill(repeated, -1)


def _aligned(queries: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Return pixel and structural distances (M, P) of fingerprints (M, S, S) and (M, P, S, S) at their best shift."""
    number, side = references.shape[1], queries.shape[-1]
    inner = side - 2 * MAX_SHIFT
    query = queries[:, MAX_SHIFT : MAX_SHIFT + inner, MAX_SHIFT : MAX_SHIFT + inner].float()
    query = query.repeat_interleave(number, dim=0)  # (M, h, w) -> (M*P, h, w)
    windows = references.float().flatten(0, 1).unfold(1, inner, 1).unfold(2, inner, 1)  # (M*P, 5, 5, h, w), a view
    # Every second pixel is enough to find the best shift.
    errors = (query[:, None, None, ::2, ::2] - windows[..., ::2, ::2]).square().mean(dim=(3, 4))
    shift = errors.flatten(1).argmin(dim=1)
    reference = windows[torch.arange(len(query)), shift // windows.shape[2], shift % windows.shape[2]]
    error = (query - reference).square().mean(dim=(1, 2)).sqrt()
    shape = (len(queries), number)
    return error.reshape(shape), (1 - _local_correlation(query, reference)).clamp(min=0).reshape(shape)


def _local_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Mean (N,) over windows of the structure term of SSIM (Wang et al. 2004, equation 10) of images (N, H, W)."""

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values[:, None], _WINDOW, _STRIDE)

    means = mean(first), mean(second)
    variances = [(mean(x.square()) - m.square()).clamp(min=0) for x, m in zip((first, second), means, strict=True)]
    covariance = mean(first * second) - means[0] * means[1]
    return ((covariance + _FLAT) / ((variances[0] * variances[1]).sqrt() + _FLAT)).mean(dim=(1, 2, 3))


def _geometric_mean(ratios: Tensor) -> Tensor:
    return ratios.clamp(min=_LEAST).log().mean(dim=-1).exp()
