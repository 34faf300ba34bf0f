"""The figures as torchmetrics, which collect batch by batch and over processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from medfusion_monai.metrics.fidelity import density_coverage, improved_precision_recall, inception_score
from medfusion_monai.metrics.frechet import Gaussian, gaussian_distance, gaussian_of_moments
from medfusion_monai.metrics.kernel import kernel_distance


class FrechetDistance(Metric):
    """Fréchet distance of features, see ``frechet_distance``; keeps sums (D, D) and no features.

    Shapes: ``update`` takes features (B, D); ``compute`` gives a scalar of at least 0.

    Args:
        dimensions: D.

    Example:
        >>> metric = FrechetDistance(dimensions=2)
        >>> metric.update(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), real=True)
        >>> metric.update(torch.tensor([[3.0, 0.0], [4.0, 0.0], [3.0, 1.0]]), real=False)
        >>> round(metric.compute().item(), 6)
        9.0
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    def __init__(self, dimensions: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("real", "fake"):
            self.add_state(f"{name}_count", torch.tensor(0), dist_reduce_fx="sum")
            self.add_state(f"{name}_sum", torch.zeros(dimensions, dtype=torch.float64), dist_reduce_fx="sum")
            squares = torch.zeros(dimensions, dimensions, dtype=torch.float64)
            self.add_state(f"{name}_squares", squares, dist_reduce_fx="sum")

    def update(self, features: Tensor, real: bool) -> None:
        """Add features (B, D) of real or of generated images."""
        name, features = "real" if real else "fake", features.double()
        getattr(self, f"{name}_count").add_(len(features))
        getattr(self, f"{name}_sum").add_(features.sum(dim=0))
        getattr(self, f"{name}_squares").addmm_(features.T, features)

    def compute(self) -> Tensor:
        """Give the distance.

        Raises:
            ValueError: if a set has fewer than two samples, or a feature is not finite.
        """
        return torch.tensor(gaussian_distance(self._gaussian("real"), self._gaussian("fake")), dtype=torch.float64)

    def _gaussian(self, name: str) -> Gaussian:
        count, total = int(getattr(self, f"{name}_count")), getattr(self, f"{name}_sum")
        if count < 2 or not total.isfinite().all():
            raise ValueError(f"a Fréchet distance needs 2 finite samples in each set: {count} {name} ones received")
        mean = total / count
        covariance = (getattr(self, f"{name}_squares") - count * mean.outer(mean)) / (count - 1)
        return gaussian_of_moments(mean, covariance)


class _FeatureSets(Metric):
    """Keeps the features of both sets."""

    is_differentiable = False
    full_state_update = False
    real_features: list[Tensor]
    fake_features: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("real_features", [], dist_reduce_fx="cat")
        self.add_state("fake_features", [], dist_reduce_fx="cat")

    def update(self, features: Tensor, real: bool) -> None:
        """Add features (B, D) of real or of generated images."""
        (self.real_features if real else self.fake_features).append(features)

    def _sets(self) -> tuple[Tensor, Tensor]:
        """Features (N, D) of the real images and (M, D) of the generated ones."""
        return dim_zero_cat(self.real_features), dim_zero_cat(self.fake_features)


class KernelDistance(_FeatureSets):
    """Kernel distance of features, see ``kernel_distance``.

    Shapes: ``update`` takes features (B, D); ``compute`` gives a scalar.

    Example:
        >>> metric = KernelDistance()
        >>> metric.update(torch.tensor([[0.0], [0.0]]), real=True)
        >>> metric.update(torch.tensor([[1.0], [1.0]]), real=False)
        >>> metric.compute().item()
        7.0
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """Give the distance, about 0 for equal distributions."""
        return torch.tensor(kernel_distance(*self._sets()))


class PrecisionRecall(_FeatureSets):
    """Improved precision and recall of features, see ``improved_precision_recall``.

    Shapes: ``update`` takes features (B, D); ``compute`` gives two scalars in [0, 1] by name.

    Args:
        k: neighbours.

    Example:
        >>> metric = PrecisionRecall(k=1)
        >>> metric.update(torch.tensor([[0.0], [1.0], [10.0]]), real=True)
        >>> metric.update(torch.tensor([[0.4], [0.6]]), real=False)
        >>> {name: round(value.item(), 2) for name, value in metric.compute().items()}
        {'precision': 1.0, 'recall': 0.0}
    """

    higher_is_better = True

    def __init__(self, k: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.k = k

    def compute(self) -> dict[str, Tensor]:
        """Give ``precision`` and ``recall``."""
        values = improved_precision_recall(*self._sets(), k=self.k)
        return dict(zip(("precision", "recall"), map(torch.tensor, values), strict=True))


class DensityCoverage(_FeatureSets):
    """Density and coverage of features, see ``density_coverage``.

    Shapes: ``update`` takes features (B, D); ``compute`` gives two scalars by name.

    Args:
        k: neighbours.

    Example:
        >>> metric = DensityCoverage(k=1)
        >>> metric.update(torch.tensor([[0.0], [1.0], [10.0]]), real=True)
        >>> metric.update(torch.tensor([[0.4], [0.6]]), real=False)
        >>> {name: round(value.item(), 2) for name, value in metric.compute().items()}
        {'density': 2.0, 'coverage': 0.67}
    """

    higher_is_better = True

    def __init__(self, k: int = 5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.k = k

    def compute(self) -> dict[str, Tensor]:
        """Give ``density`` and ``coverage``."""
        values = density_coverage(*self._sets(), k=self.k)
        return dict(zip(("density", "coverage"), map(torch.tensor, values), strict=True))


class InceptionScore(Metric):
    """Inception score of generated images, see ``inception_score``.

    Shapes: ``update`` takes logits (B, classes); ``compute`` gives a scalar of at least 1.

    Args:
        splits: parts of the set whose scores are averaged.

    Example:
        >>> metric = InceptionScore(splits=1)
        >>> metric.update(torch.tensor([[90.0, 0.0], [0.0, 90.0]]))
        >>> round(metric.compute().item(), 6)
        2.0
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    logits: list[Tensor]

    def __init__(self, splits: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.splits = splits
        self.add_state("logits", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor) -> None:
        """Add logits (B, classes) of generated images."""
        self.logits.append(logits)

    def compute(self) -> Tensor:
        """Give the score."""
        return torch.tensor(inception_score(dim_zero_cat(self.logits), self.splits))


class ImageSimilarity(Metric):
    """Mean over images of a measure of pairs.

    Any of ``similarity``, or LPIPS by ``partial(lpips_distance, network=...)``.

    Shapes: ``update`` takes two batches (B, C, H, W) in [0, 1]; ``compute`` gives a scalar.

    Args:
        function: gives one value an image (B,): ``ms_ssim``, ``ssim``, ``mse`` or ``psnr``.

    Example:
        >>> from medfusion_monai.metrics.similarity import mse
        >>> metric = ImageSimilarity(mse)
        >>> metric.update(torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), 0.5))
        >>> metric.compute().item()
        0.25
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.function = function
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, image: Tensor) -> None:
        """Add pairs of images."""
        values = self.function(prediction, image)
        self.total += values.double().sum()
        self.count += len(values)

    def compute(self) -> Tensor:
        """Give the mean of all images."""
        return self.total / self.count
