"""Distances between samples in blocks, and who lies in whose neighbourhood: memory grows linearly with the count."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_NEAR = 0.1  # of the squared lengths: float32 is exact to about 1e-7 of them, a millionth of a distance at this limit
_SAME = 1e-13  # of the squared lengths: below it two vectors are equal to the last digit of float32
_TIE = 2e-6  # of a squared radius: this close to the border counts as on it, because rounding differs between blocks


class Neighbourhoods(NamedTuple):
    """Contribution of each sample to precision, recall, density and coverage, which are the means.

    Attributes:
        precision: (M,) for the generated samples, whether it is in the ball of a real sample.
        recall: (N,) for the real samples, whether it is in the ball of a generated sample.
        density: (M,) for the generated samples, number of balls of real samples that contain it, over k.
        coverage: (N,) for the real samples, whether its ball contains a generated sample.
    """

    precision: Tensor
    recall: Tensor
    density: Tensor
    coverage: Tensor


def blocks(count: int, chunk: int) -> Iterator[slice]:
    """Split ``count`` rows into slices of ``chunk``."""
    return (slice(start, min(start + chunk, count)) for start in range(0, count, chunk))


def neighbourhoods(real: Tensor, fake: Tensor, k: int, density_k: int, chunk: int = 1024) -> Neighbourhoods:
    """Compare the samples of two sets with the balls around those of the other.

    The ball of a sample is as large as the distance to its k-th nearest neighbour in its own set. Its border is
    inside for precision and recall (Kynkaanniemi et al. 2019, equation 1) and outside for density and coverage
    (Naeem et al. 2020, equations 4 and 5).

    Args:
        real: features (N, D), finite.
        fake: features (M, D), finite.
        k: neighbours for precision and recall, fewer than N and M.
        density_k: neighbours for density and coverage, fewer than N.
        chunk: rows and columns of the distance matrix at a time.
    """
    shift = _mean(real, fake, chunk=chunk)
    real, fake = _shifted(real, shift), _shifted(fake, shift)
    real_radii = neighbour_distances(real, max(k, density_k), chunk)
    fake_ball = neighbour_distances(fake, k, chunk)[:, k - 1] * (1 + _TIE)
    real_ball, strict_ball = real_radii[:, k - 1] * (1 + _TIE), real_radii[:, density_k - 1] * (1 - _TIE)
    precision = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    recall = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    balls = torch.zeros(len(fake), dtype=torch.long, device=fake.device)
    nearest = torch.full_like(strict_ball, torch.inf)
    for i in blocks(len(real), chunk):
        for j in blocks(len(fake), chunk):
            distances = squared_distances(real[i], fake[j])
            precision[j] |= (distances <= real_ball[i, None]).any(dim=0)
            recall[i] |= (distances <= fake_ball[j]).any(dim=1)
            balls[j] += (distances < strict_ball[i, None]).sum(dim=0)
            nearest[i] = torch.minimum(nearest[i], distances.amin(dim=1))
    return Neighbourhoods(precision, recall, balls.double() / density_k, nearest < strict_ball)


def neighbour_distances(features: Tensor, k: int, chunk: int = 1024) -> Tensor:
    """Squared distances (N, k) of samples (N, D) to their k nearest others, ascending.

    A sample is not its own neighbour; an equal sample is, at distance 0.
    """
    features = _shifted(features, _mean(features, chunk=chunk))
    nearest = features.new_full((len(features), k), torch.inf)
    for i in blocks(len(features), chunk):
        for j in blocks(len(features), chunk):
            if j.start < i.start:
                continue  # the block across the diagonal has the same distances
            distances = squared_distances(features[i], features[j])
            if i == j:
                distances.fill_diagonal_(torch.inf)
            else:
                nearest[j] = _smallest(nearest[j], distances.T, k)
            nearest[i] = _smallest(nearest[i], distances, k)
    return nearest


def nearest_neighbours(queries: Tensor, references: Tensor, k: int = 1, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Find the nearest references of each query, such as the training images closest to a generated image.

    Exact, by Euclidean distances in float64. To compare pixels, pass images averaged to a low resolution and
    flattened, ``adaptive_avg_pool2d(images, 32).flatten(1)``.

    Args:
        queries: (M, D), finite.
        references: (N, D), finite.
        k: references per query, at most N.
        chunk: rows and columns of the distance matrix at a time.

    Returns:
        Distances (M, k) in float64, ascending, and the indices (M, k) of those references.

    Raises:
        ValueError: if the vectors differ in size or are not finite, or there are fewer than ``k`` references.
    """
    if queries.ndim != 2 or references.ndim != 2 or queries.shape[1] != references.shape[1]:
        shapes = f"{tuple(queries.shape)} and {tuple(references.shape)}"
        raise ValueError(f"queries and references must be (M, D) and (N, D), received {shapes}")
    if not 1 <= k <= len(references):
        raise ValueError(f"k={k} nearest of {len(references)} references: give k from 1 to their number")
    if not all(bool(rows.isfinite().all()) for vectors in (queries, references) for rows in vectors.split(chunk)):
        raise ValueError("queries or references have values that are not finite: check the images and the extractor")
    shift = _mean(references, chunk=chunk)
    found = [_nearest(rows.double() - shift, references, shift, k, chunk) for rows in queries.split(chunk)]
    if not found:
        return queries.new_empty(0, k, dtype=torch.float64), queries.new_empty(0, k, dtype=torch.long)
    return torch.cat([distances for distances, _ in found]), torch.cat([places for _, places in found])


def neighbour_rows(samples: Tensor, places: Tensor, load: Callable[[int], Tensor]) -> list[Tensor]:
    """Return rows of images for ``grid_of_rows``: samples above their nearest references, nearest first.

    Args:
        samples: (M, C, H, W).
        places: (M, k), of ``nearest_neighbours``.
        load: returns the reference (C, H, W) at an index.

    Returns:
        k + 1 rows, (M, C, H, W) each.
    """
    return [samples, *(torch.stack([load(int(place)) for place in column]) for column in places.T)]


def squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances (N, M) of vectors (N, D) and (M, D); 0 for equal ones.

    By lengths and products, as fast as a matrix product. Where that cancels, because two vectors are close compared
    with their lengths, the block is computed again in float64: sets full of copies take up to three times
    as long.
    """
    distances, sizes = _expanded(first, second)
    if bool((distances < _NEAR * sizes).any()):
        exact, sizes = _expanded(first.double(), second.double())
        distances = exact.masked_fill_(exact < _SAME * sizes, 0).to(first.dtype)
    return distances.clamp_(min=0)


def _expanded(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances as |a|^2 + |b|^2 - 2ab, and |a|^2 + |b|^2."""
    sizes = first.square().sum(dim=1)[:, None] + second.square().sum(dim=1)
    return torch.addmm(sizes, first, second.T, alpha=-2), sizes


def _nearest(queries: Tensor, references: Tensor, shift: Tensor, k: int, chunk: int) -> tuple[Tensor, Tensor]:
    """Distances and indices (M, k) of the nearest references of a few shifted queries (M, D)."""
    nearest = queries.new_full((len(queries), k), torch.inf)
    places = torch.zeros_like(nearest, dtype=torch.long)
    for columns in blocks(len(references), chunk):
        distances, _ = _expanded(queries, references[columns].double() - shift)
        here = torch.arange(columns.start, columns.stop, device=places.device).expand(len(queries), -1)
        nearest, chosen = torch.cat([nearest, distances], dim=1).topk(k, dim=1, largest=False)
        places = torch.cat([places, here], dim=1).gather(1, chosen)
    # Products cancel where a query and a reference are alike: the chosen ones are measured again by differences.
    columns_of = [(queries - (references[place].double() - shift)).norm(dim=1) for place in places.T]
    exact, order = torch.stack(columns_of, dim=1).sort(dim=1, stable=True)
    return exact, places.gather(1, order)


def _smallest(known: Tensor, distances: Tensor, k: int) -> Tensor:
    """The k smallest of each row of both, ascending."""
    return torch.cat([known, distances], dim=1).topk(k, dim=1, largest=False).values


def _mean(*sets: Tensor, chunk: int) -> Tensor:
    """Mean (D,) in float64 of the rows of all sets."""
    total = sum(part.sum(dim=0, dtype=torch.float64) for features in sets for part in features.split(chunk))
    assert isinstance(total, Tensor)
    return total / sum(len(features) for features in sets)


def _shifted(features: Tensor, shift: Tensor) -> Tensor:
    """Shift features: distances stay the same, and products cancel less."""
    dtype = features.dtype if features.dtype in (torch.float32, torch.float64) else torch.float32
    return features.to(dtype) - shift.to(dtype)
