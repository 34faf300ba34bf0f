"""Measure how often 95% intervals contain the value that they are of, on distributions with known limits.

Sets are drawn again and again from known distributions. The target of FID, precision, recall, density and coverage is
the mean of the value over all draws of the same counts; that of a share, and of KID between alike distributions, is
known; KID is unbiased, so its mean is its limit. For alike distributions the mean density must be 1, which checks the
targets. The known FID of the distributions shows how far the value at these counts is from it.

The rule, written before the figures that it judges:

- Every cell of every row counts. Corrections may be calibrated on ``CALIBRATING`` alone; ``VERIFYING`` judge them.
- An interval called 95% must contain its target in 90 to 98% of draws. A cell is *narrow* or *wide* if the exact 95%
  binomial interval (Clopper and Pearson) of its share lies below or above that range: with 300 draws, from 258 down and
  from 299 up.
- No cell may be narrow, and over the verifying rows each figure's mean share must be at least 93%.
- A wide cell is accepted, and marked *bound*, where no interval can be otherwise: FID of equal distributions, whose
  distance is 0 and which cannot be below; precision, recall, coverage, accuracy and AUC with a mean within 0.05 of
  0 or 1, where Wilson's interval is wide for independent items too. Any other wide cell is named in the documentation.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor

from medfusion_monai.evaluation.metrics import fidelity
from medfusion_monai.evaluation.metrics.comparison import Comparison
from medfusion_monai.evaluation.metrics.fid import gaussian_distance, gaussian_of_moments
from medfusion_monai.evaluation.metrics.intervals import Figure, mean_figure
from medfusion_monai.evaluation.metrics.label_steering import steering_figures

METRICS = ("fid", "kid", "precision", "recall", "density", "coverage")
SHARES = (0.5, 0.9, 0.98)
AREAS = (0.6, 0.8, 0.95, 0.99)
CLASS_COUNTS = ((10, 10), (25, 25), (10, 90), (15, 485), (100, 100))
RANGE = (90.0, 98.0)  # percent of intervals that contain their target
NEAR_BOUND = 0.05
MODES = 4.0  # half the distance of the mixture's two modes
FREEDOM = 8  # degrees of freedom of the heavy tails
MORE = 3  # times as many real samples as generated ones where counts differ
Draw = Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]


def normal(count: int, dimensions: int, generator: torch.Generator) -> Tensor:
    """Draw from the unit Gaussian."""
    return torch.randn(count, dimensions, generator=generator)


def alike(count: int, dimensions: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw both sets from the unit Gaussian."""
    return normal(count, dimensions, generator), normal(count, dimensions, generator)


def shifted(count: int, dimensions: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shift the generated Gaussian by 1.5."""
    real, fake = alike(count, dimensions, generator)
    return real, fake + 1.5 / dimensions**0.5


def narrow(count: int, dimensions: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Give the generated Gaussian a standard deviation of 0.8."""
    real, fake = alike(count, dimensions, generator)
    return real, 0.8 * fake


def mixture(count: int, dimensions: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw real samples from two modes equally often, generated ones from the second in 20% of cases."""
    real, fake = alike(count, dimensions, generator)
    for samples, share in ((real, 0.5), (fake, 0.2)):
        second = torch.rand(count, generator=generator) < share
        samples[:, 0] += torch.where(second, -MODES, MODES)
    return real, fake


def heavy(count: int, dimensions: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw real samples from a multivariate t distribution, generated ones from the unit Gaussian."""
    real, fake = alike(count, dimensions, generator)
    squares = torch.randn(count, FREEDOM, generator=generator).square().mean(dim=1, keepdim=True)
    return real / squares.sqrt(), fake


def correlated(count: int, dimensions: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Correlate features i and j by 0.9^|i - j| in the real samples, 0.5^|i - j| in the generated ones."""
    real, fake = alike(count, dimensions, generator)
    return real @ _cholesky(0.9, dimensions).T, fake @ _cholesky(0.5, dimensions).T


def positive(count: int, dimensions: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cut both Gaussians off at 0, as a network's activations are, and scale the generated one by 1.2."""
    real, fake = alike(count, dimensions, generator)
    return real.relu(), 1.2 * fake.relu()


def unequal(count: int, dimensions: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shift the generated Gaussian by 0.8, and draw three times as many real samples."""
    return normal(MORE * count, dimensions, generator), normal(count, dimensions, generator) + 0.8 / dimensions**0.5


def _cholesky(correlation: float, dimensions: int) -> Tensor:
    return torch.linalg.cholesky(_covariance(correlation, dimensions)).float()


def _covariance(correlation: float, dimensions: int) -> Tensor:
    places = torch.arange(dimensions, dtype=torch.float64)
    return correlation ** (places - places[:, None]).abs()


CALIBRATING: dict[str, Draw] = {"alike": alike, "shifted": shifted, "narrow": narrow, "mixture": mixture}
VERIFYING: dict[str, Draw] = {"heavy": heavy, "correlated": correlated, "positive": positive, "unequal": unequal}
DISTRIBUTIONS = CALIBRATING | VERIFYING


def known_fid(name: str, dimensions: int) -> float:
    """Return the Fréchet distance of the distributions' means and covariances."""
    if name == "mixture":
        means = [(1 - 2 * share) * MODES for share in (0.5, 0.2)]
        deviations = [(1 + MODES**2 - mean**2) ** 0.5 for mean in means]
        return (means[0] - means[1]) ** 2 + (deviations[0] - deviations[1]) ** 2
    if name == "correlated":
        center = torch.zeros(dimensions)
        return gaussian_distance(*(gaussian_of_moments(center, _covariance(each, dimensions)) for each in (0.9, 0.5)))
    by_dimensions = {"alike": 0.0, "narrow": 0.2**2, "positive": 0.2**2 / 2}  # half: the mean square of a cut Gaussian
    by_dimensions["heavy"] = ((FREEDOM / (FREEDOM - 2)) ** 0.5 - 1) ** 2
    return {"shifted": 1.5**2, "unequal": 0.8**2}.get(name) or dimensions * by_dimensions[name]


def verdict(percent: float, trials: int, at_bound: bool) -> str:
    """Judge a cell by the rule above: narrow, wide, bound, or nothing."""
    interval = binomtest(round(percent * trials / 100), trials).proportion_ci(method="exact")
    if 100 * interval.high < RANGE[0]:
        return " narrow"
    if 100 * interval.low > RANGE[1]:
        return " bound" if at_bound else " wide"
    return ""


def at_bound(name: str, metric: str, mean: float) -> bool:
    """Return whether a figure is so near its bound that no interval can contain it in 98% of draws or fewer."""
    if metric in ("precision", "recall", "coverage"):
        return not NEAR_BOUND < mean < 1 - NEAR_BOUND
    return name == "alike" and metric == "fid"


def contained(figures: Sequence[Mapping[str, Figure]], name: str, target: float) -> float:
    """Return the share of intervals that contain the target, in percent."""
    ends = [(low, high) for _, low, high, _ in (figure[name] for figure in figures)]
    return 100 * sum(low is not None and high is not None and low <= target <= high for low, high in ends) / len(ends)


def measure(
    name: str, count: int, dimensions: int, trials: int, replicates: int, metrics: Sequence[str]
) -> dict[str, Any]:
    """Measure one distribution at one count and number of dimensions."""
    start, generator = time.perf_counter(), torch.Generator().manual_seed(0)
    chosen = [metric for metric in fidelity.METRICS if metric.column.key in metrics]
    draws = [DISTRIBUTIONS[name](count, dimensions, generator) for _ in range(trials)]
    figures = [
        fidelity.measure_sets(Comparison(*sets, replicates=replicates, seed=seed), chosen)
        for seed, sets in enumerate(draws)
    ]
    means = {metric: sum(each[metric].value or 0.0 for each in figures) / trials for metric in metrics}
    targets = means | ({"kid": 0.0} if name == "alike" else {})
    shares = {metric: contained(figures, metric, targets[metric]) for metric in metrics}
    return {
        "distributions": name,
        "count": count,
        "dimensions": dimensions,
        "trials": trials,
        "contained": shares,
        "verdicts": {each: verdict(shares[each], trials, at_bound(name, each, means[each])) for each in metrics},
        "means": means,
        "known_fid": known_fid(name, dimensions),
        "seconds": time.perf_counter() - start,
    }


def measure_share(share: float, count: int, trials: int) -> dict[str, Any]:
    """Measure the interval of a share of independent items."""
    generator = torch.Generator().manual_seed(0)
    draws = [torch.rand(count, generator=generator) < share for _ in range(trials)]
    figures = [{"share": mean_figure(draw)} for draw in draws]
    return {"share": share, "count": count, "trials": trials, "contained": contained(figures, "share", share)}


def measure_classifier(area: float, counts: tuple[int, int], trainings: int, trials: int) -> dict[str, Any]:
    """Measure the intervals of a classifier's accuracy and AUC; the target is their mean over all draws.

    The scores of the two classes are Gaussians. Trainings differ in their distance by a standard deviation of 0.3, and
    in 36% of the variance of each image's score. The interval of one training covers the test images only: its
    distance does not vary.
    """
    generator, figures = torch.Generator().manual_seed(0), []
    labels = torch.cat([torch.zeros(counts[0]), torch.ones(counts[1])]).long()
    distance = 2 * torch.special.erfinv(torch.tensor(2 * area - 1))
    for seed in range(trials):
        noise = torch.randn(1 + trainings, len(labels), generator=generator)
        distances = distance + (0.3 if trainings > 1 else 0.0) * torch.randn(trainings, 1, generator=generator)
        positive = (0.8 * noise[0] + 0.6 * noise[1:] + distances * (labels - 0.5)).double().sigmoid()
        scores = [torch.stack([1 - each, each], dim=1) for each in positive]
        figures.append(dict(zip(("accuracy", "auc"), steering_figures(scores, labels, 200, seed), strict=True)))
    means = {name: sum(each[name].value or 0.0 for each in figures) / trials for name in ("accuracy", "auc")}
    shares = {name: contained(figures, name, mean) for name, mean in means.items()}
    verdicts = {name: verdict(shares[name], trials, not NEAR_BOUND <= means[name] <= 1 - NEAR_BOUND) for name in means}
    return {"counts": counts, "trainings": trainings, "means": means, "contained": shares, "verdicts": verdicts}


def print_classifiers(trials: int) -> list[dict[str, Any]]:
    """Print the intervals of classifiers, of several trainings and of one, by the test images of the two classes."""
    rows = []
    print("| AUC | counts | trainings | accuracy | auc |")
    for counts in CLASS_COUNTS:
        for area, trainings in itertools.product(AREAS, (3, 1)):
            row = measure_classifier(area, counts, trainings, trials)
            cells = " | ".join(f"{row['contained'][name]:.0f}{row['verdicts'][name]}" for name in row["means"])
            print(f"| {row['means']['auc']:.3f} | {counts} | {trainings} | {cells} |", flush=True)
            rows.append(row)
    return rows


def main() -> None:
    """Print a row per distribution, count and number of dimensions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[64, 256], help="samples per set")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[2, 16, 64], help="features per sample")
    parser.add_argument("--distributions", nargs="+", default=list(DISTRIBUTIONS), choices=DISTRIBUTIONS)
    parser.add_argument("--metrics", nargs="+", default=list(METRICS), choices=METRICS)
    parser.add_argument("--trials", type=int, default=200, help="pairs of sets per row")
    parser.add_argument("--replicates", type=int, default=100, help="resampled sets per interval")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--classifiers", action="store_true", help="accuracy and AUC of classifiers in place of these")
    arguments = parser.parse_args()
    if arguments.classifiers:
        classifiers = print_classifiers(arguments.trials)
        if arguments.json:
            arguments.json.write_text(json.dumps(classifiers, indent=2) + "\n")
        return
    shares = [measure_share(share, count, 10 * arguments.trials) for share in SHARES for count in arguments.counts]
    for row in shares:
        print(f"| share of {row['share']} | {row['count']} | {row['contained']:.0f} |", flush=True)
    rows = []
    print(f"| distributions | count | dimensions | {' | '.join(arguments.metrics)} | means | known FID |")
    for count in arguments.counts:
        for dimensions in arguments.dimensions:
            for name in arguments.distributions:
                row = measure(name, count, dimensions, arguments.trials, arguments.replicates, arguments.metrics)
                cells = [f"{row['contained'][metric]:.0f}{row['verdicts'][metric]}" for metric in arguments.metrics]
                means = ", ".join(f"{row['means'][metric]:.2f}" for metric in arguments.metrics)
                print(
                    f"| {' | '.join([name, str(count), str(dimensions), *cells, means])} | {row['known_fid']:.2f} |",
                    flush=True,
                )
                rows.append(row)
    if arguments.json:
        arguments.json.write_text(json.dumps({"shares": shares, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
