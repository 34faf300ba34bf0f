"""The class of an image by the UNet's denoising error under each label (Li et al. 2023, arXiv:2303.16203)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from medfusion_monai.diffusion.denoiser import estimate
from medfusion_monai.diffusion.guidance import guided_denoiser
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.diffusion.spacing import LEAST_SIGNAL, schedule_timesteps
from medfusion_monai.editing.edit_inputs import Labels, batches, checked_labels, image_seeds, images_to_edit
from medfusion_monai.model import Model
from medfusion_monai.runtime.dtype import autocast
from medfusion_monai.runtime.seeds import generators, randn
from medfusion_monai.runtime.values import check_counts, check_numbers

LARGEST_TEMPERATURE = 1e6


class Classification(NamedTuple):
    """Classes of images.

    Attributes:
        probabilities: (B, classes), rows sum to 1; all classes are as probable beforehand.
        log_likelihoods: (B, classes), up to a constant per image, before the temperature.
        is_calibrated: whether a temperature was given. Without, probabilities are far too close to 0 and 1.
    """

    probabilities: Tensor
    log_likelihoods: Tensor
    is_calibrated: bool

    @property
    def labels(self) -> Tensor:
        """The most probable label of each image, (B,)."""
        return self.probabilities.argmax(1)


class Calibration(NamedTuple):
    """A temperature and what it was fitted on.

    Attributes:
        temperature: divides the log-likelihoods.
        log_loss: mean log loss of the images with the temperature, in nats.
        log_loss_before: without.
        num_images: number of images.
    """

    temperature: float
    log_loss: float
    log_loss_before: float
    num_images: int


@torch.no_grad()
def classify(
    model: Model,
    images: Tensor,
    temperature: float | None = None,
    num_levels: int = 32,
    seed: int = 0,
    batch_size: int = 16,
    dtype: torch.dtype = torch.float32,
) -> Classification:
    """Classify images by how well the UNet denoises them under each label.

    Half the squared error of the noise, summed over the latents and integrated over the log of the signal-to-noise
    ratio, is minus the log-likelihood up to a constant, for an exact denoiser (Kingma et al. 2021, equation 12). A
    trained one is not exact: fit a temperature by ``calibrate``.

    Args:
        model: a loaded model.
        images: (B, C, H, W) in [0, 1].
        temperature: of ``calibrate``; None for uncalibrated probabilities.
        num_levels: noise levels, even in the log of the signal-to-noise ratio; the UNet is called once per level and
            class.
        seed: of the noise, which all classes share.
        batch_size: images at a time.
        dtype: of the UNet's arithmetic.

    Raises:
        ValueError: for images of another form, a temperature of 0 or less, or fewer than two levels.
    """
    images_to_edit(model, images)
    check_counts(2, num_levels=num_levels)
    if temperature is not None:
        check_numbers(above=True, temperature=temperature)
    seeds = image_seeds("classify", images, seed)
    parts = [
        _log_likelihoods(model, images[at], seeds[at], num_levels, dtype) for at in batches(len(images), batch_size)
    ]
    scores = torch.cat(parts)
    return Classification((scores / (temperature or 1.0)).softmax(1).float(), scores, temperature is not None)


def calibrate(scores: Tensor, labels: Labels, model: Model | None = None) -> Calibration:
    """Fit the temperature that minimises the log loss of labelled images (Guo et al. 2017, section 4.2).

    True classes count as 1 - 1 / (N + 2) and not as 1 (after Platt 1999), so that the temperature stays above 0 if
    all images are classified correctly.

    Args:
        scores: (N, classes), ``log_likelihoods`` of ``classify``, of images that nothing else is reported on.
        labels: (N,) numbers, or names if ``model`` is given.
        model: knows the names.

    Raises:
        ValueError: for fewer than two images or classes, another number of labels than images, or an unknown label.
    """
    if scores.ndim != 2 or len(scores) < 2 or scores.shape[1] < 2:
        raise ValueError(f"scores must be (N, classes), both at least 2, received shape {tuple(scores.shape)}")
    if model is None:
        numbers = torch.as_tensor(labels).cpu()
        if numbers.shape != scores.shape[:1] or not bool(((numbers >= 0) & (numbers < scores.shape[1])).all()):
            raise ValueError(
                f"labels must be {len(scores)} numbers from 0 to {scores.shape[1] - 1}, received {numbers.tolist()}"
            )
    else:
        numbers = checked_labels(model, labels, len(scores), "labels").cpu()
    own = scores.detach().cpu().double()
    targets = torch.full_like(own, 1.0 / (len(own) + 2) / (own.shape[1] - 1))
    targets[torch.arange(len(own)), numbers] = 1.0 - 1.0 / (len(own) + 2)

    def smoothed_loss(log_temperature: float) -> float:
        return -float((targets * (own / math.exp(log_temperature)).log_softmax(1)).sum(1).mean())

    def log_loss(temperature: float) -> float:
        return -float((own / temperature).log_softmax(1)[torch.arange(len(own)), numbers].mean())

    bound = math.log(LARGEST_TEMPERATURE)
    best = math.exp(float(minimize_scalar(smoothed_loss, bounds=(-bound, bound), method="bounded").x))
    return Calibration(best, log_loss(best), log_loss(1.0), len(own))


def own_labels(
    model: Model, images: Tensor, label: Labels | None, batch_size: int = 16, argument: str = "label"
) -> Tensor:
    """Return the classes of images, (B,): those that are given, or if None those that ``classify`` finds."""
    if label is not None:
        return checked_labels(model, label, len(images), argument, unknown=True)
    return classify(model, images, batch_size=batch_size).labels.to(model.device)


def _log_likelihoods(model: Model, images: Tensor, seeds: list[int], num_levels: int, dtype: torch.dtype) -> Tensor:
    """Return (B, classes), on the CPU, the largest of each image 0."""
    schedule, latents, sources = model.schedule, model.encode(images), generators(seeds)
    timesteps = schedule_timesteps(schedule, num_levels, "logsnr")
    scores = torch.zeros(len(images), len(model.class_names), dtype=torch.float64)
    for timestep, weight in zip(timesteps, _widths(schedule, timesteps), strict=True):
        noise = randn(latents.shape[1:], sources, latents.device)
        noisy = schedule.exact_signal[timestep] * latents + schedule.exact_sigma[timestep] * noise
        for label in range(len(model.class_names)):
            labels = torch.full((len(images),), label, device=latents.device)
            with autocast(latents.device, dtype):
                _, estimated = estimate(guided_denoiser(model.network.unet, labels), noisy, schedule, timestep)
            scores[:, label] -= 0.5 * weight * (estimated - noise).double().square().flatten(1).sum(1).cpu()
    return scores - scores.amax(1, keepdim=True)


def _widths(schedule: NoiseSchedule, timesteps: list[int]) -> list[float]:
    """Return the weights of the trapezoidal rule over the log of the signal-to-noise ratio."""
    scales = [(max(schedule.exact_signal[t], LEAST_SIGNAL), schedule.exact_sigma[t]) for t in timesteps]
    levels = [2.0 * math.log(signal / sigma) for signal, sigma in scales]
    gaps = [0.0, *(high - low for low, high in pairwise(levels)), 0.0]
    return [(before + after) / 2.0 for before, after in pairwise(gaps)]
