"""Where an image differs from its healthy variations, and which differences are unusual."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from scipy.stats import binom
from torch import Tensor

from medfusion_monai.editing.counterfactuals import GUIDANCE_SCALE
from medfusion_monai.editing.edit_inputs import Labels, batches
from medfusion_monai.editing.variation import variations
from medfusion_monai.model import Model
from medfusion_monai.runtime.values import check_numbers, is_number
from medfusion_monai.weights.guidance_model import NO_GUIDE, SETTING

ANOMALY_STRENGTH, DRAWS, SMOOTHING = 0.4, 4, 2.0


class AnomalyThreshold(NamedTuple):
    """The score above which an image counts as unusual.

    Attributes:
        value: the share of other healthy images above it is expected to be at most ``false_positive_rate``.
        low: lower end of the interval of the score that exactly this share of healthy images exceeds.
        high: its upper end; infinite if there are too few images to tell.
        false_positive_rate: share of healthy images.
        confidence: of the interval.
        num_images: healthy images that it was measured on.
    """

    value: float
    low: float
    high: float
    false_positive_rate: float
    confidence: float
    num_images: int


@torch.no_grad()
def anomaly_map(
    model: Model,
    images: Tensor,
    healthy: Labels,
    strength: float = ANOMALY_STRENGTH,
    guidance_scale: float = GUIDANCE_SCALE,
    smoothing: float = SMOOTHING,
    n: int = DRAWS,
    seed: int = 0,
    batch_size: int = 16,
    **choices: Any,
) -> Tensor:
    """Show how much each pixel changes from the reconstruction of an image to its healthy variations.

    Noise hides what the model does not know, and denoising as healthy does not bring it back (Wyatt et al. 2022,
    AnoDDPM). An exact inversion does bring it back, which is why ``counterfactual`` keeps such findings. Reconstruction
    and variations come from the same autoencoder, so that what it loses does not count.

    Args:
        model: a loaded model.
        images: (B, C, H, W) in [0, 1], of the model's size.
        healthy: the class without findings.
        strength: as in ``variations``: more finds larger things, and takes more of what is healthy for unusual.
        guidance_scale: of the class: the more, the more of what separates the classes is found.
        smoothing: standard deviation of a Gaussian, in pixels; 0 for none.
        n: variations of an image that are averaged.
        seed: of the variations.
        batch_size: images at a time.
        choices: ``num_inference_steps``, ``spacing`` or ``dtype`` in place of the model's.

    Returns:
        (B, 1, H, W) in [0, 1], float32, on the CPU: the mean absolute difference over channels and variations. The
        largest value of an image is its score.

    Raises:
        ValueError: as in ``variations``, and for a negative smoothing.
    """
    check_numbers(smoothing=smoothing)
    choices = {SETTING: NO_GUIDE, **choices, "guidance_scale": guidance_scale}  # by the label
    shown = variations(model, images, healthy, strength, n, seed, batch_size, **choices).unflatten(0, (-1, n))
    plain = torch.cat([model.reconstruct(images[at]).cpu() for at in batches(len(images), batch_size)])
    return smoothed((shown - plain[:, None]).abs().mean((1, 2))[:, None], smoothing)


def anomaly_threshold(maps: Tensor, false_positive_rate: float = 0.05, confidence: float = 0.95) -> AnomalyThreshold:
    """Find the score that few healthy images exceed, from the maps of healthy images that were not trained on.

    The value is an order statistic of their scores, as in conformal prediction (Vovk et al. 2005): whatever their
    distribution, another healthy image from the same source exceeds it with at most the given probability. The
    interval is that of the quantile, from the binomial distribution of the number of scores below it.

    Args:
        maps: (N, 1, H, W) of ``anomaly_map``, or scores (N,).
        false_positive_rate: share of healthy images, in (0, 1).
        confidence: of the interval, in (0, 1).

    Raises:
        ValueError: for too few images, shares out of range, or scores that are not finite.
    """
    _check_share("confidence", confidence)
    scores = scores_of(maps).double().sort().values
    if not bool(scores.isfinite().all()):
        raise ValueError("maps must be finite: check the weights")
    count = len(scores)
    rank = rank_of_threshold(count, false_positive_rate)
    below = binom(count, 1.0 - false_positive_rate)
    first, last = int(below.ppf((1.0 - confidence) / 2)), int(below.ppf((1.0 + confidence) / 2)) + 1
    low = float(scores[first - 1]) if first >= 1 else 0.0
    high = float(scores[last - 1]) if last <= count else math.inf
    return AnomalyThreshold(float(scores[rank - 1]), low, high, false_positive_rate, confidence, count)


def rank_of_threshold(count: int, false_positive_rate: float) -> int:
    """Return which of ``count`` scores of healthy images, ascending from 1, is the threshold.

    Raises:
        ValueError: for a rate that is not between 0 and 1, or too few images for it.
    """
    _check_share("false_positive_rate", false_positive_rate)
    rank = math.ceil(round((count + 1) * (1.0 - false_positive_rate), 9))
    if rank > count:
        needed = math.ceil(round(1.0 / false_positive_rate, 9)) - 1
        raise ValueError(
            f"a false positive rate of {false_positive_rate:g} needs at least {needed} healthy images, received {count}"
        )
    return rank


def _check_share(name: str, share: float) -> None:
    if not is_number(share) or not 0.0 < share < 1.0:
        raise ValueError(f"{name} must be between 0 and 1, received {share!r}")


def scores_of(maps: Tensor) -> Tensor:
    """Return the largest value of each map (N, 1, H, W), (N,); scores (N,) are returned as they are."""
    if maps.ndim not in (1, 4) or not len(maps):
        raise ValueError(f"maps must be (N, 1, H, W), or scores (N,), received shape {tuple(maps.shape)}")
    return maps.detach().cpu().flatten(1).amax(1) if maps.ndim == 4 else maps.detach().cpu()


def smoothed(maps: Tensor, sigma: float) -> Tensor:
    """Smooth maps (B, 1, H, W) by a Gaussian of ``sigma`` pixels; beyond the border, it has no weight."""
    if sigma == 0.0:
        return maps
    reach = math.ceil(3.0 * sigma)
    offsets = torch.arange(-reach, reach + 1, dtype=maps.dtype)
    weights = (-offsets.square() / (2.0 * sigma**2)).exp()

    def blur(values: Tensor) -> Tensor:
        rows = F.conv2d(values, weights[None, None, :, None], padding=(reach, 0))
        return F.conv2d(rows, weights[None, None, None, :], padding=(0, reach))

    return blur(maps) / blur(torch.ones_like(maps))
