"""Similarity of two images, and the diversity of a set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric
from monai.metrics.regression import compute_ms_ssim
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from medfusion_monai.evaluation.metrics.comparison import Comparison
from medfusion_monai.evaluation.metrics.intervals import Figure, mean_figure
from medfusion_monai.losses.reconstruction import structural_similarity

FULL_WINDOW = 11
"""Side of the published Gaussian window of sigma 1.5."""
DIVERSITY_PAIRS = 200
"""Random pairs within a set whose mean similarity a report shows."""
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the five scales (Wang et al. 2003, section 3.2)."""
SMALLEST_FULL_SIDE = FULL_WINDOW * 2 ** (len(SCALE_WEIGHTS) - 1)
"""Pixels per side from which all scales have the full window."""


def ms_ssim_window(height: int, width: int) -> int:
    """Return the side of the largest odd window, at most 11, with which five scales fit into an image.

    It is the usual 11 from 176 pixels, and 3 at 64 pixels.

    Raises:
        ValueError: if the image is too small for five scales of a 3x3 window (below 48 pixels).
    """
    window = min(FULL_WINDOW, min(height, width) // 2 ** (len(SCALE_WEIGHTS) - 1))
    window -= 1 - window % 2
    if window < 3:
        raise ValueError(f"MS-SSIM needs images of at least 48x48 pixels, received {height}x{width}")
    return window


def ms_ssim(prediction: Tensor, image: Tensor, window: int | None = None) -> Tensor:
    """Multi-scale SSIM (Wang et al. 2003) of five scales, one value per image.

    Only windows within the image count, as published. At the coarsest scale torchmetrics also counts windows over a
    reflected border, so its values differ by up to 0.005, most for images with a dark border such as fundi.

    Args:
        prediction: (B, C, H, W) in [0, 1].
        image: of the same shape and range.
        window: side of the Gaussian window of sigma 1.5; None takes the largest that fits, at most 11.

    Returns:
        (B,), at most 1.
    """
    window = window or ms_ssim_window(*image.shape[-2:])
    return compute_ms_ssim(prediction, image, 2, kernel_size=window, weights=SCALE_WEIGHTS).flatten()


def ms_ssim_as_in_paper(prediction: Tensor, image: Tensor) -> Tensor:
    """MS-SSIM as the paper's script calls torchmetrics: one pair at a time, without ``data_range``.

    In place of 1, torchmetrics then takes the larger range of the two images, again at each scale. Images of low
    contrast get lower values than by ``ms_ssim``.

    Args:
        prediction: (B, C, H, W) in [0, 1], at least 176 pixels per side.
        image: of the same shape and range.

    Returns:
        (B,), at most 1.
    """
    pairs = zip(prediction.split(1), image.split(1), strict=True)
    return torch.stack([multiscale_structural_similarity_index_measure(*pair, betas=SCALE_WEIGHTS) for pair in pairs])


def ssim(prediction: Tensor, image: Tensor) -> Tensor:
    """SSIM (B,) of images (B, C, H, W) in [0, 1] with the usual 11x11 Gaussian window of sigma 1.5."""
    return structural_similarity(prediction, image)


def mse(prediction: Tensor, image: Tensor) -> Tensor:
    """Mean squared error (B,) of images (B, C, H, W) in [0, 1]."""
    return (prediction - image).square().mean(dim=(1, 2, 3))


def psnr(prediction: Tensor, image: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in decibels of images (B, C, H, W) in [0, 1]; infinite for equal ones."""
    return -10 * mse(prediction, image).log10()


def diversity(
    images: Tensor | Sequence[Tensor], pairs: int = 500, seed: int = 0, replicates: int = 1000, batch_size: int = 32
) -> Figure:
    """Mean MS-SSIM of random pairs within a set (Odena et al. 2017, section 4.2): the lower, the more diverse.

    No image is paired with itself and no pair is drawn twice; a small set gives all of its pairs. The interval
    resamples pairs as if they shared no images, and is too narrow if an image is in many pairs.

    Args:
        images: (N, C, H, W) in [0, 1], or a sequence that returns image i, (C, H, W), when indexed.
        pairs: number of pairs to draw.
        seed: of the draw and the resampling.
        replicates: resampled sets of pairs; 0 leaves the interval out.
        batch_size: pairs per batch, which bounds the memory.

    Returns:
        The mean; None for fewer than two images, or images below 48x48 pixels.
    """
    if len(images) < 2:
        return Figure(None, note=f"diversity needs at least 2 images, received {len(images)}")
    try:
        ms_ssim_window(*images[0].shape[-2:])
    except ValueError as error:
        return Figure(None, note=str(error))
    drawn = _random_pairs(len(images), pairs, seed)
    values = []
    for part in drawn.split(batch_size):
        first, second = (torch.stack([images[int(i)] for i in column]) for column in part.T)
        values.append(ms_ssim(first, second))
    figure = mean_figure(torch.cat(values), replicates, seed)
    return figure._replace(note="; ".join(filter(None, [f"{len(drawn)} pairs of {len(images)} images", figure.note])))


def diversity_figure(sets: Comparison) -> Figure | None:
    """Return the diversity of the generated images; None if only their features are known."""
    if sets.images is None:
        return None
    return diversity(sets.images, DIVERSITY_PAIRS, sets.seed, sets.replicates)


def _random_pairs(count: int, pairs: int, seed: int) -> Tensor:
    """Draw distinct pairs (P, 2) of distinct numbers below ``count``."""
    number = count * (count - 1) // 2
    drawn = np.random.default_rng(seed).choice(number, size=min(pairs, number), replace=False)
    # The pairs in order are (1, 0), (2, 0), (2, 1), (3, 0), ...: the first pair of n has the number n (n - 1) / 2.
    larger = ((1 + np.sqrt(1 + 8 * drawn)) / 2).astype(int)
    return torch.from_numpy(np.stack([larger, drawn - larger * (larger - 1) // 2], axis=1))


class ImageMetric(CumulativeIterationMetric):
    """Collects one value per image, for MONAI's ``IgniteMetricHandler`` and ``MetricsSaver``.

    Args:
        function: maps predictions and images, (B, C, H, W) in [0, 1], to values (B,); e.g. ``ms_ssim``.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        assert y is not None
        return self.function(y_pred, y)[:, None]  # (B,) -> (B, 1): one class

    def aggregate(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the mean over all images."""
        values = self.get_buffer()
        assert isinstance(values, Tensor)
        return values.mean()
