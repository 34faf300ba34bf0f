"""How near generated images come to training images, on the scale of how near they come to images never trained on."""

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
"""Those that make up the score. Features are reported beside it: they found no further copy and more false alarms."""
CANDIDATES = 8
"""Nearest images by coarse pixels, and as many by features, that are looked at closely."""
SCALE_NEIGHBOURS = 5
"""Nearest held-out images whose mean distance is the scale."""
MAX_SHIFT = 2
"""Pixels of a fingerprint, a thirty-second of the image, by which a copy may be shifted."""

_WINDOW, _STRIDE = 7, 3  # of the local correlations, in pixels of a fingerprint
_FLAT = 0.02  # variance below which a window counts as flat; that of a fingerprint is 1
_AT_ONCE = 8  # queries; bounds the memory of their pairs
_LEAST = 1e-3  # ratio below which half precision cannot tell distances apart


class Matches(NamedTuple):
    """The training image that each query comes nearest to.

    Attributes:
        scores: (M,), see ``Matcher.match``; about 1 for an image that is no copy, near 0 for a copy.
        places: (M,), the training image of the score.
        distances: (M, K), from it by each measure.
        scales: (M, K), by which the distances are divided.
        nearest: (M, K), distance to the nearest training image by each measure alone.
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
        held_out: of images that no training has seen, as like the training images as can be.
        flips: key of ``FLIPS``: how a copy may be mirrored.

    Raises:
        ValueError: fewer held-out images than the scale needs, no training images, or features for one set alone.
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
            raise ValueError("features of training and held-out images belong together: give both or none")
        self.axes = FLIPS[flips]
        self.training, self.held_out = _References(training), _References(held_out)

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the distances, in order."""
        return MEASURES if self.training.features is not None else JUDGES

    @torch.no_grad()
    def match(self, queries: Prints) -> Matches:
        """Find the nearest training image of each query; every query by itself.

        The score of a query x is the smallest, over training images t, of the geometric mean of d(x, t) / s(x) over
        two measures: pixels (root mean square difference at the best shift) and structure (1 - mean local correlation
        there); Euclidean distance of features is reported beside them. s(x) is the mean distance of x to its nearest
        held-out images by the same measure, so that an image that looks like all others is not taken for a copy:
        dividing by the distances to neighbours is the idea of Carlini et al. 2023. They take training images for
        neighbours, which hides the copies of an image that is repeated among them.

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
    """Images among which neighbours are looked for."""

    def __init__(self, prints: Prints) -> None:
        self.fine, self.patients = prints.fine, prints.patients
        self.features = None if prints.features is None else prints.features[:, 0]
        self.coarse = coarse(prints.fine)
        self.most = int(prints.patients.unique(return_counts=True)[1].max())

    def candidates(self, queries: Prints, axes: Sequence[tuple[int, ...]]) -> Tensor:
        """Return places (M, P) of the nearest images by coarse pixels and by features; -1 where there are fewer.

        Raises:
            ValueError: these images have features, and the queries have none.
        """
        found = [self._nearest([coarse(flipped(queries.fine, turn)) for turn in axes], self.coarse, queries.patients)]
        if self.features is not None:
            if queries.features is None:
                raise ValueError("the queries have no features, and those they are compared with have: give them")
            found.append(self._nearest(list(queries.features.unbind(dim=1)), self.features, queries.patients))
        return _each_once(torch.cat(found, dim=1))

    def distances(self, queries: Prints, axes: Sequence[tuple[int, ...]], places: Tensor) -> Tensor:
        """Return distances (M, P, K) of candidates, the least over all orientations; infinite where there is none."""
        chosen = places.clamp(min=0)
        by_flip = []
        for index, turn in enumerate(axes):
            columns = list(_aligned(flipped(queries.fine, turn), self.fine[chosen]))
            if self.features is not None and queries.features is not None:
                columns.append((queries.features[:, index, None].float() - self.features[chosen].float()).norm(dim=2))
            by_flip.append(torch.stack(columns, dim=2))
        return torch.stack(by_flip).amin(dim=0).masked_fill((places < 0)[:, :, None], torch.inf)

    def _nearest(self, vectors: list[Tensor], references: Tensor, patients: Tensor) -> Tensor:
        """Return places (M, k) of the nearest references over all orientations; -1 for those of the query's patient."""
        number = min(len(references), CANDIDATES + self.most)
        pairs = [nearest_neighbours(each.float(), references.float(), k=number) for each in vectors]
        distances = torch.cat([distance for distance, _ in pairs], dim=1)
        places = torch.cat([place for _, place in pairs], dim=1)
        distances = distances.masked_fill(self.patients[places] == patients[:, None], torch.inf)
        order = distances.argsort(dim=1, stable=True)
        places, distances = places.gather(1, order), distances.gather(1, order)
        places = _each_once(places.masked_fill(distances == torch.inf, -1))
        order = (places < 0).long().argsort(dim=1, stable=True)  # what counts first, the nearest first among it
        return places.gather(1, order)[:, :CANDIDATES]


def _each_once(places: Tensor) -> Tensor:
    """Replace places (M, P) that stand further left in their row by -1."""
    repeated = (places[:, :, None] == places[:, None, :]).tril(diagonal=-1).any(dim=2)
    return places.masked_fill(repeated, -1)


def _aligned(queries: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Return pixel and structural distances (M, P) of fingerprints (M, S, S) and (M, P, S, S) at their best shift."""
    number, side = references.shape[1], queries.shape[-1]
    inner = side - 2 * MAX_SHIFT
    query = queries[:, MAX_SHIFT : MAX_SHIFT + inner, MAX_SHIFT : MAX_SHIFT + inner].float()
    query = query.repeat_interleave(number, dim=0)  # (M, h, w) -> (M*P, h, w)
    windows = references.float().flatten(0, 1).unfold(1, inner, 1).unfold(2, inner, 1)  # (M*P, 5, 5, h, w), a view
    # Every second pixel tells which shift is best.
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
