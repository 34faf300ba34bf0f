"""The metrics of the fidelity table: how each is computed, and how the report shows it.

To add one, write a function from a ``Comparison`` to a ``Figure`` in a new file, and an entry in ``METRICS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from medfusion_monai.evaluation.metrics.comparison import Comparison
from medfusion_monai.evaluation.metrics.fid import fid_figure
from medfusion_monai.evaluation.metrics.intervals import Figure
from medfusion_monai.evaluation.metrics.kid import kid_figure
from medfusion_monai.evaluation.metrics.precision_recall import (
    coverage_figure,
    density_figure,
    precision_figure,
    recall_figure,
)
from medfusion_monai.evaluation.metrics.similarity import diversity_figure
from medfusion_monai.report.tables import Measure


class Metric(NamedTuple):
    """A metric of the fidelity table.

    Attributes:
        column: key of the metric in results, and its column in the report.
        measure: computes it; None for sets that it does not apply to, whose rows then lack it.
        about: explanation above the table.
        headline: its name in a sentence, such as "a recall of". Metrics with a headline are also measured for the sweep
            over sampling steps, and for the real images that the report gives for scale.
        inception_only: whether other features make it meaningless, so it is left out with them.
    """

    column: Measure
    measure: Callable[[Comparison], Figure | None]
    about: str = ""
    headline: str = ""
    inception_only: bool = False


METRICS: tuple[Metric, ...] = (
    Metric(
        Measure("fid", "FID", 2, "lower", counts_matter=True),
        fid_figure,
        "FID is the distance between the distributions of a set and of the reference in the space of the features. "
        "It is biased by the number of images: the fewer, the larger, so compare equal counts. Its interval is of the "
        "value at these counts, not of the distance between the distributions.",
        headline="a Fréchet distance of",
    ),
    Metric(
        Measure("kid", "KID \N{MULTIPLICATION SIGN} 1000", 2, "lower", scale=1000.0),
        kid_figure,
        "KID is such a distance without that bias; its interval is of the distance itself.",
        inception_only=True,  # the kernel's constants suit the size of Inception-v3's features
    ),
    Metric(
        Measure("precision", "Precision", 3, "higher"),
        precision_figure,
        "Precision is the share of images that look like reference images. The intervals of precision, recall, density "
        "and coverage are of their mean over other sets of these counts.",
        headline="a precision of",
    ),
    Metric(
        Measure("recall", "Recall", 3, "higher", counts_matter=True),
        recall_figure,
        "Recall is the share of the reference that the set covers.",
        headline="a recall of",
    ),
    Metric(
        Measure("density", "Density", 3, "higher"),
        density_figure,
        "Density and coverage measure the same and are less sensitive to single outliers.",
    ),
    Metric(Measure("coverage", "Coverage", 3, "higher", counts_matter=True), coverage_figure),
    # Not ranked: noise has the lowest of all. The reference's own value is what a set should have.
    Metric(
        Measure("diversity_ms_ssim", "MS-SSIM within the set", 3, hint="lower is more diverse"),
        diversity_figure,
        "MS-SSIM within the set is the mean similarity of random pairs: compare it with the reference's own. "
        "Its interval is of the choice of pairs.",
    ),
)


def fidelity_columns() -> list[Measure]:
    """Return the columns of the fidelity table, with their explanations, for a report."""
    return [metric.column._replace(about=metric.about) for metric in METRICS]


def metrics_of(features: Mapping[str, Any]) -> list[Metric]:
    """Return the metrics that mean something for features, by the description of their extractor."""
    return [metric for metric in METRICS if features.get("is_inception") or not metric.inception_only]


def headline_metrics() -> list[Metric]:
    """Return the metrics that have a headline."""
    return [metric for metric in METRICS if metric.headline]


def measure_sets(sets: Comparison, metrics: Sequence[Metric] | None = None) -> dict[str, Figure]:
    """Compute metrics, all of ``METRICS`` by default.

    Returns:
        Figures by the key of their metric, in the order of the table.
    """
    figures = {metric.column.key: metric.measure(sets) for metric in (METRICS if metrics is None else metrics)}
    return {key: figure for key, figure in figures.items() if figure is not None}


def measure_fidelity(
    real: Tensor,
    fake: Tensor,
    replicates: int = 100,
    seed: int = 0,
    k: int = 3,
    density_k: int = 5,
) -> dict[str, Figure]:
    """Compute all metrics of two sets of features, each with a 95% interval.

    FID and KID resample both sets; precision, recall, density and coverage take halves of both, see ``Comparison``.

    A replicate costs little, except for FID with large sets: as much as FID itself, which at 2,048 features takes
    about 6 s on two cores for 15,738 samples per set, and less than a second for 1,000. Large sets have ten.

    Args:
        real: (N, D).
        fake: (M, D).
        replicates: resampled sets; 0 leaves the intervals out.
        seed: of the resampling.
        k: neighbours for precision and recall; the paper and Medfusion use 3.
        density_k: neighbours for density and coverage; the paper uses 5.

    Returns:
        Figures by the key of their metric. Where a metric cannot be computed, the value is None and the note states
        why. Every note contains the numbers of samples.

    Raises:
        ValueError: if a set has fewer than two samples, the features differ in size, or one is not finite.
    """
    return measure_sets(Comparison(real, fake, replicates, seed, k, density_k))
