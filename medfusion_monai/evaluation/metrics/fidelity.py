"""How real a set of images is, and how much of the real ones it covers, from features of both."""

from __future__ import annotations

from torch import Tensor

from medfusion_monai.evaluation.metrics.fid import frechet_distance, frechet_figure
from medfusion_monai.evaluation.metrics.intervals import Figure, mean_figure
from medfusion_monai.evaluation.metrics.kid import kernel_distance, kernel_figure
from medfusion_monai.evaluation.metrics.neighbours import neighbourhoods

__all__ = [
    "density_coverage",
    "frechet_distance",
    "improved_precision_recall",
    "kernel_distance",
    "measure_fidelity",
]

_LARGEST = 1e15  # squares of larger features overflow float32
_NEIGHBOURHOOD_FIGURES = ("precision", "recall", "density", "coverage")


def measure_fidelity(
    real: Tensor,
    fake: Tensor,
    replicates: int = 100,
    seed: int = 0,
    k: int = 3,
    density_k: int = 5,
) -> dict[str, Figure]:
    """Measure generated against real features, each figure with a 95% bootstrap interval.

    Precision, recall, density and coverage are means over samples: those samples are resampled, while the
    neighbourhoods they are compared with stay as they are. Resampled neighbourhoods would shrink, to nothing around a
    sample that is drawn more than k times. Neighbourhoods vary from draw to draw too, so that the intervals are too
    narrow, those of recall and density 0.6 to 0.8 times as wide as they should be in trials. FID and KID
    resample both sets; see ``frechet_figure`` for FID's interval.

    A replicate costs little, except for FID with large sets: as much as FID itself, which at 2,048 features takes
    about 6 s on two cores for 15,738 samples a set, and less than a second for 1,000. Large sets have ten.

    Args:
        real: (N, D).
        fake: (M, D).
        replicates: resampled sets; 0 leaves the intervals out.
        seed: of the resampling.
        k: neighbours for precision and recall; the paper and Medfusion use 3.
        density_k: neighbours for density and coverage; the paper uses 5.

    Returns:
        ``fid``, ``kid``, ``precision``, ``recall``, ``density``, ``coverage``. A figure that
        the features do not give has the value None; its note says why. Every note holds the numbers of samples.

    Raises:
        ValueError: if a set has fewer than two samples, the features differ in size, or one is not finite.
    """
    check_features(real, fake)
    note = f"{len(fake)} samples against {len(real)}"
    equal = [f"all {name} features are equal" for name, x in (("real", real), ("generated", fake)) if _is_constant(x)]
    caution = "; ".join([note, *equal])
    figures = {
        "fid": frechet_figure(real, fake, replicates, seed, "; ".join([caution, *_rank_notes(real, fake)])),
        "kid": kernel_figure(real, fake, replicates, seed, caution),
    }
    if equal:
        figures |= dict.fromkeys(_NEIGHBOURHOOD_FIGURES, Figure(None, note=f"{caution}: there are no neighbourhoods"))
    else:
        figures |= _neighbourhood_figures(real, fake, k, density_k, replicates, seed)
    return figures


def check_features(real: Tensor, fake: Tensor) -> None:
    """Refuse sets of features that no figure can be computed from.

    Raises:
        ValueError: if they are not (N, D) and (M, D) with two samples at least, or a value is not finite.
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D), received {tuple(real.shape)} and {tuple(fake.shape)}")
    if min(len(real), len(fake)) < 2:
        raise ValueError(f"a set needs at least 2 samples: {len(real)} real, {len(fake)} generated")
    for name, features in (("real", real), ("generated", fake)):
        broken = sum(int((~(part.abs() <= _LARGEST)).any(dim=1).sum()) for part in features.split(1024))
        if broken:
            raise ValueError(
                f"features of {broken} of {len(features)} {name} samples are not finite or above {_LARGEST:g}: "
                "the images or the feature extractor's weights are broken"
            )


def improved_precision_recall(real: Tensor, fake: Tensor, k: int = 3, chunk: int = 1024) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, equation 1).

    Precision is the share of generated samples that lie within the manifold of the real ones, recall the share of
    real samples within the manifold of the generated ones. A manifold is the union of balls around all samples,
    each as large as the distance to the sample's k-th nearest neighbour.

    Args:
        real: features (N, D).
        fake: features (M, D).
        k: neighbours; the paper and Medfusion use 3.
        chunk: rows and columns of the distance matrix at a time, which bounds the memory.

    Returns:
        Precision and recall, each in [0, 1].

    Raises:
        ValueError: if a set has no more than ``k`` samples, the features differ in size, or one is not finite.
    """
    check_features(real, fake)
    _check_neighbours(real, fake, k)
    shares = neighbourhoods(real, fake, k, k, chunk)
    return float(shares.precision.double().mean()), float(shares.recall.double().mean())


def density_coverage(real: Tensor, fake: Tensor, k: int = 5, chunk: int = 1024) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, equations 4 and 5).

    Density counts in how many balls around real samples a generated one lies, over k; coverage is the share of real
    samples whose ball holds a generated one. Unlike precision and recall, they build balls around real samples
    alone, so that single odd generated samples do not raise them.

    Args:
        real: features (N, D).
        fake: features (M, D).
        k: neighbours; the paper uses 5.
        chunk: rows and columns of the distance matrix at a time, which bounds the memory.

    Returns:
        Density, at least 0 and about 1 for equal distributions, and coverage, in [0, 1].

    Raises:
        ValueError: if a set has no more than ``k`` samples, the features differ in size, or one is not finite.
    """
    check_features(real, fake)
    _check_neighbours(real, fake, k)
    shares = neighbourhoods(real, fake, k, k, chunk)
    return float(shares.density.mean()), float(shares.coverage.double().mean())


def _neighbourhood_figures(
    real: Tensor, fake: Tensor, k: int, density_k: int, replicates: int, seed: int
) -> dict[str, Figure]:
    """Precision, recall, density and coverage, from one pass over the distances."""
    count, note = min(len(real), len(fake)), f"{len(fake)} samples against {len(real)}"
    needs = dict(zip(_NEIGHBOURHOOD_FIGURES, (k, k, density_k, density_k), strict=True))
    figures = {
        name: Figure(None, note=f"{note}: {need} neighbours need more than {need} in each set")
        for name, need in needs.items()
        if count <= need
    }
    usable = max((need for need in needs.values() if need < count), default=None)
    if usable is None:
        return figures
    shares = neighbourhoods(real, fake, min(k, usable), min(density_k, usable))
    for name, values in shares._asdict().items():
        if name not in figures:
            figure = mean_figure(values, replicates, seed)
            figures[name] = figure._replace(note="; ".join(filter(None, [note, figure.note])))
    return figures


def _check_neighbours(real: Tensor, fake: Tensor, k: int) -> None:
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"k={k} neighbours need more than {k} samples in each set: {len(real)} real, {len(fake)} fake")


def _is_constant(features: Tensor) -> bool:
    return all(bool((part == features[0]).all()) for part in features.split(1024))


def _rank_notes(real: Tensor, fake: Tensor) -> list[str]:
    count, dimensions = min(len(real), len(fake)), real.shape[1]
    if count > dimensions:
        return []
    return [f"{count} samples for {dimensions} features: the covariance is singular, the value depends on their number"]
