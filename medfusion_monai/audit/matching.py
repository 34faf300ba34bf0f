"""Distances from generated to training images, relative to their distances from images that were not trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from medfusion_monai.audit.fingerprints import COARSE, FLIPS, SIDE, Prints, coarse, flipped

MEASURES = ("pixels", "structure", "features")
JUDGES = MEASURES[:2]
"""The measures in the score. Features, which found no more copies but more false alarms, are only reported."""
CANDIDATES = 8
"""Nearest images by coarse pixels, and as many by features, that are compared exactly."""
SCALE_NEIGHBOURS = 5
"""Number of nearest held-out images whose mean distance is the scale."""
MAX_SHIFT = 2
"""Pixels of a fingerprint by which a copy may be shifted: a thirty-second of the image."""
TURNS = (
    *((angle, zoom) for angle in (-3.0, 0.0, 3.0) for zoom in (1 / 1.05, 1.0, 1.05) if (angle, zoom) != (0.0, 1.0)),
    *((-1.5, 1.0), (1.5, 1.0), (0.0, 1 / 1.025), (0.0, 1.025)),
)
"""Degrees by which a copy may be rotated, and how much larger it may be."""

_ROWS = 4096  # references at a time; bounds the memory of their distances
_WINDOW, _STRIDE = 7, 3  # of the local correlations, in pixels of a fingerprint
_FLAT = 0.05  # variance below which a window counts as flat; a fingerprint has 1
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
        measures: pixels (root mean square difference at the best shift, rotation, zoom and flip) and structure (1 -
        mean local correlation there). The Euclidean distance of features is reported beside them. s(x) is the mean
        distance of x to its nearest held-out images by the same measure, so an image that resembles all others is not
        mistaken for a copy.
        Dividing by the distances to neighbours follows Carlini et al. 2023, who take training images as neighbours;
        that hides copies of an image that is repeated among them.

        Held-out images can be queries too: images of the query's own patient do not count as its neighbours.
        """
        parts = [self._match(queries.select(rows)) for rows in torch.arange(len(queries.fine)).split(_AT_ONCE)]
        return Matches(*(torch.cat(column) for column in zip(*parts, strict=True)))

    @torch.no_grad()
    def closest(self, queries: Prints, number: int) -> tuple[Tensor, Tensor]:
        """Find several training images close to each query.

        Args:
            queries: at most a few images.
            number: of training images per query; at most as many are found as are compared exactly.

        Returns:
            scores (M, number) as in ``match``, ascending, and places (M, number), -1 where there are fewer images.
        """
        scores, places, _, _ = self._compared(queries)
        scores, order = scores.topk(min(number, scores.shape[1]), dim=1, largest=False)
        return scores, places.gather(1, order)

    def _match(self, queries: Prints) -> Matches:
        ratios, places, distances, scales = self._compared(queries)
        scores, chosen = ratios.min(dim=1)
        rows = torch.arange(len(scores))
        return Matches(scores, places[rows, chosen], distances[rows, chosen], scales, distances.amin(dim=1))

    def _compared(self, queries: Prints) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return scores and places (M, P) of candidates, their distances (M, P, K), and the scales (M, K)."""
        turned = variants_of(queries.fine, self.axes)
        places = self.training.candidates(queries, turned)
        distances = self.training.distances(queries, turned, places)
        nearest = self.held_out.distances(queries, turned, self.held_out.candidates(queries, turned))
        scales = nearest.topk(SCALE_NEIGHBOURS, dim=1, largest=False).values.mean(dim=1).clamp(min=1e-6)  # (M, K)
        scores = _geometric_mean((distances / scales[:, None])[..., : len(JUDGES)])
        return scores, places, distances, scales


class _References:
    """Images that are searched for neighbours."""

    def __init__(self, prints: Prints) -> None:
        self.fine, self.patients = prints.fine, prints.patients
        self.features = None if prints.features is None else prints.features[:, 0].float()
        self.coarse = coarse(prints.fine)

    def candidates(self, queries: Prints, turned: Tensor) -> Tensor:
        """Return indices (M, P) of the nearest images by coarse pixels and by features, padded with -1.

        Raises:
            ValueError: if these images have features and the queries have none.
        """
        found = [self._nearest(_coarse_shifts(turned), self.coarse, queries.patients)]
        if self.features is not None:
            if queries.features is None:
                raise ValueError(
                    "the queries have no features, but the images they are compared with do: give features for both"
                )
            found.append(self._nearest(queries.features.float(), self.features, queries.patients))
        return _each_once(torch.cat(found, dim=1))

    def distances(self, queries: Prints, turned: Tensor, places: Tensor) -> Tensor:
        """Return distances (M, P, K) to candidates at the best alignment; infinite for padding."""
        chosen = places.clamp(min=0)
        columns = list(_aligned(turned, self.fine[chosen]))
        if self.features is not None and queries.features is not None:
            between = queries.features[:, :, None].float() - self.features[chosen][:, None]  # (M, F, P, D)
            columns.append(between.norm(dim=3).amin(dim=1))
        return torch.stack(columns, dim=2).masked_fill((places < 0)[:, :, None], torch.inf)

    def _nearest(self, vectors: Tensor, references: Tensor, patients: Tensor) -> Tensor:
        """Return indices (M, k) of the references nearest to any vector of (M, V, D); -1 for the query's patient."""
        flat = vectors.flatten(0, 1)
        parts = [torch.cdist(flat, some).unflatten(0, vectors.shape[:2]).amin(1) for some in references.split(_ROWS)]
        distances = torch.cat(parts, dim=1).masked_fill(self.patients == patients[:, None], torch.inf)
        nearest, places = distances.topk(min(CANDIDATES, len(references)), dim=1, largest=False)
        return places.masked_fill(nearest == torch.inf, -1)


def _each_once(places: Tensor) -> Tensor:
    """Replace indices (M, P) that occur further left in their row by -1."""
    repeated = (places[:, :, None] == places[:, None, :]).tril(diagonal=-1).any(dim=2)
    return places.masked_fill(repeated, -1)


def variants_of(fine: Tensor, axes: Sequence[tuple[int, ...]]) -> Tensor:
    """Turn and zoom fingerprints (M, S, S), then flip them: (M, V, S, S). The first variant is the fingerprint."""
    images, variants = fine.float()[:, None], [fine.float()]
    for angle, zoom in TURNS:
        cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        matrix = torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0]]) / zoom
        grid = F.affine_grid(matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False)
        variants.append(F.grid_sample(images, grid, padding_mode="border", align_corners=False)[:, 0])
    return torch.cat([flipped(torch.stack(variants, dim=1), turn) for turn in axes], dim=1)


def _coarse_shifts(turned: Tensor) -> Tensor:
    """Average fingerprints (M, V, S, S), at each shift, to vectors (M, V * 25, 256)."""
    cell = SIDE // COARSE
    means = F.avg_pool2d(F.pad(turned, (MAX_SHIFT,) * 4, mode="replicate"), cell, 1)
    steps = range(2 * MAX_SHIFT + 1)
    shifted = [means[..., y : y + SIDE : cell, x : x + SIDE : cell] for y in steps for x in steps]
    return torch.stack([each[..., :COARSE, :COARSE] for each in shifted], dim=2).flatten(3).flatten(1, 2)


def _aligned(queries: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Return pixel and structural distances (M, P) of fingerprints (M, V, S, S) and (M, P, S, S), aligned at best."""
    count, number, side = *references.shape[:2], queries.shape[-1]
    inner = side - 2 * MAX_SHIFT
    query = queries[..., MAX_SHIFT : MAX_SHIFT + inner, MAX_SHIFT : MAX_SHIFT + inner]  # (M, V, h, w)
    windows = references.float().unfold(2, inner, 1).unfold(3, inner, 1)  # (M, P, 5, 5, h, w), a view
    # Every second pixel is enough to find the best variant and shift.
    few, candidates = query[..., ::2, ::2].flatten(2), windows[..., ::2, ::2].flatten(4).flatten(1, 3)
    errors = torch.baddbmm(candidates.square().sum(dim=2)[:, :, None], candidates, few.mT, alpha=-2)
    errors = (errors + few.square().sum(dim=2)[:, None]).reshape(count, number, -1)  # (M, P, 25 * V)
    best = errors.argmin(dim=2).flatten()
    shift, variant = best // queries.shape[1], best % queries.shape[1]
    row, place = torch.arange(count).repeat_interleave(number), torch.arange(number).repeat(count)
    reference = windows[row, place, shift // windows.shape[3], shift % windows.shape[3]]
    query = query[row, variant]
    error = (query - reference).square().mean(dim=(1, 2)).sqrt()
    shape = (count, number)
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
