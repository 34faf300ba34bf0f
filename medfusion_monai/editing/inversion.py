"""From an image to the noise that deterministic DDIM turns into this image, and back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medfusion_monai.diffusion.denoiser import Denoiser, estimate
from medfusion_monai.diffusion.guidance import guided_denoiser
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.editing.diffusion_classifier import own_labels
from medfusion_monai.editing.edit_inputs import (
    Labels,
    batches,
    checked_labels,
    images_to_edit,
    mixed,
    noise_levels,
    plain_sampler,
)
from medfusion_monai.model import Model
from medfusion_monai.runtime.dtype import autocast
from medfusion_monai.runtime.values import check_numbers

TOLERANCE, HALF_TOLERANCE = 1e-3, 2e-2
"""Of a noisy latent; the rounding of a half precision leaves more."""


class Inversion(NamedTuple):
    """Images as noisy latents, from which ``regenerate`` gives them back.

    Attributes:
        noisy_latents: (B, L, h, w) at the first of the timesteps.
        class_labels: (B,), the labels that the images were inverted under.
        timesteps: descending, from the noise that was reached to 0.
        defects: (len(timesteps) - 1, B, L, h, w), what each step leaves unexplained; about 0.001.
    """

    noisy_latents: Tensor
    class_labels: Tensor
    timesteps: list[int]
    defects: Tensor


@torch.no_grad()
def invert(
    model: Model,
    images: Tensor,
    label: Labels | None = None,
    strength: float = 1.0,
    batch_size: int = 16,
    **choices: Any,
) -> Inversion:
    """Find the noisy latents from which deterministic DDIM generates images.

    Args:
        model: a loaded model.
        images: (B, C, H, W) in [0, 1], of the model's size.
        label: the images' class, one for all or one per image; None for the one that ``classify`` finds, -1 for the
            UNet's prediction without a label.
        strength: share of the noise levels that are inverted, in (0, 1]; 1 ends in noise.
        batch_size: images at a time.
        choices: ``num_inference_steps``, ``spacing`` or ``dtype`` in place of the model's.

    Raises:
        ValueError: for images of another form, an unknown class, or a setting out of range.
    """
    images_to_edit(model, images)
    sampler = plain_sampler(model, choices)
    timesteps = noise_levels(sampler.timesteps, strength)
    tolerance = TOLERANCE if sampler.dtype == torch.float32 else HALF_TOLERANCE
    labels = own_labels(model, images, label, batch_size)
    parts = []
    for at in batches(len(images), batch_size):
        denoiser = guided_denoiser(model.network.unet, labels[at])
        latents = model.encode(images[at])
        with autocast(model.device, sampler.dtype):
            parts.append(ddim_invert(denoiser, latents, model.schedule, timesteps, tolerance))
    noisy, defects = zip(*parts, strict=True)
    return Inversion(torch.cat(noisy), labels, timesteps, torch.cat(defects, 1))


@torch.no_grad()
def regenerate(
    model: Model,
    inversion: Inversion,
    label: Labels | None = None,
    guidance_scale: float = 1.0,
    batch_size: int = 16,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Generate images from inverted ones.

    Args:
        model: the model that inverted them.
        inversion: of ``invert``.
        label: the class to generate; None for that of the inversion, which gives the images' reconstructions.
        guidance_scale: weight of the difference between the predictions under this class and under that of the
            inversion: 0 for the latter, 1 for the former, more to exaggerate.
        batch_size: images at a time.
        dtype: of the UNet's arithmetic.

    Returns:
        (B, C, H, W) in [0, 1], float32, on the CPU.

    Raises:
        ValueError: for an unknown class, or a guidance scale that is not a number of at least 0.
    """
    check_numbers(guidance_scale=guidance_scale)
    count = len(inversion.noisy_latents)
    labels = inversion.class_labels if label is None else checked_labels(model, label, count)
    images = []
    for at in batches(count, batch_size):
        part = inversion._replace(noisy_latents=inversion.noisy_latents[at], defects=inversion.defects[:, at])
        own, other = (guided_denoiser(model.network.unet, of[at]) for of in (inversion.class_labels, labels))
        denoiser = mixed(own, other, guidance_scale)
        if bool((labels[at] == inversion.class_labels[at]).all()):
            denoiser = own
        with autocast(model.device, dtype):
            latents = from_inversion(denoiser, part, model.schedule)
        images.append(model.decode(latents).cpu())
    return torch.cat(images)


def ddim_invert(
    denoiser: Denoiser,
    latents: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int],
    tolerance: float = TOLERANCE,
    iterations: int = 20,
) -> tuple[Tensor, Tensor]:
    """Run deterministic DDIM (eta 0) backwards: from clean latents to noisy ones.

    Each step is an equation for its noisier end, solved by accelerated fixed-point iteration (Pan et al. 2023,
    arXiv:2309.04907). What is then left of the equation is kept and added when the step is taken forwards, so that
    the way back ends exactly at the latents. The latents, unchanged, are those of the lowest noise level.

    Args:
        denoiser: the network with its condition.
        latents: (B, L, h, w), clean.
        schedule: the schedule that the network was trained with.
        timesteps: descending, the last the lowest.
        tolerance: largest change of a noisy latent at which the iteration ends, for each image by itself.
        iterations: calls of the network per step, at most.

    Returns:
        noisy latents (B, L, h, w) at the first timestep, and what is left, (len(timesteps) - 1, B, L, h, w).
    """
    noisy, clean = schedule.exact_signal[timesteps[-1]] * latents, latents
    defects = []
    for start, end in reversed(list(pairwise(timesteps))):
        noisy, clean, defect = _step_back(denoiser, noisy, clean, schedule, start, end, tolerance, iterations)
        defects.append(defect)
    return noisy, torch.stack(defects[::-1])


def ddim_walk(
    denoiser: Denoiser, noisy: Tensor, schedule: NoiseSchedule, timesteps: Sequence[int], defects: Tensor | None = None
) -> Tensor:
    """Take the steps of deterministic DDIM from the first to the last of descending timesteps.

    Args:
        denoiser: the network with its condition.
        noisy: (B, L, h, w) at the first timestep.
        schedule: the schedule that the network was trained with.
        timesteps: descending.
        defects: (len(timesteps) - 1, B, L, h, w) to add after the steps.

    Returns:
        (B, L, h, w), noisy latents at the last timestep.
    """
    for index, (start, end) in enumerate(pairwise(timesteps)):
        keep, gain = _factors(schedule, start, end)
        clean, _ = estimate(denoiser, noisy, schedule, start)
        noisy = keep * noisy + gain * clean
        if defects is not None:
            noisy = noisy + defects[index]
    return noisy


def from_inversion(denoiser: Denoiser, inversion: Inversion, schedule: NoiseSchedule) -> Tensor:
    """Return the clean latents (B, L, h, w) that follow from inverted ones by a denoiser."""
    lowest = ddim_walk(denoiser, inversion.noisy_latents, schedule, inversion.timesteps, inversion.defects)
    return lowest / schedule.exact_signal[inversion.timesteps[-1]]


def _factors(schedule: NoiseSchedule, start: int, end: int) -> tuple[float, float]:
    """Factors of the noisy and the clean latents in a step of DDIM with eta 0."""
    keep = schedule.exact_sigma[end] / schedule.exact_sigma[start]
    return keep, schedule.exact_signal[end] - keep * schedule.exact_signal[start]


def _step_back(
    denoiser: Denoiser,
    below: Tensor,
    clean: Tensor,
    schedule: NoiseSchedule,
    start: int,
    end: int,
    tolerance: float,
    iterations: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the latents at ``start`` from which a step leads to ``below``, their clean estimate, and the rest."""
    keep, gain = _factors(schedule, start, end)
    guess = (below - gain * clean) / keep
    before: tuple[Tensor, Tensor] | None = None
    for remaining in reversed(range(iterations)):
        clean, _ = estimate(denoiser, guess, schedule, start)
        wanted = (below - gain * clean) / keep
        change = wanted - guess
        is_open = change.flatten(1).abs().amax(1) > tolerance
        if remaining == 0 or not bool(is_open.any()):
            break
        better = wanted if before is None else _accelerated(wanted, change, *before)
        before = wanted, change
        guess = torch.where(is_open[:, None, None, None], better, guess)  # an image ends by itself, not by its batch
    return guess, clean, keep * change


def _accelerated(wanted: Tensor, change: Tensor, wanted_before: Tensor, change_before: Tensor) -> Tensor:
    """One step of Anderson's acceleration of depth 1, each image with its own factor."""
    difference = change - change_before
    dims = (1, 2, 3)
    length = difference.square().sum(dims, keepdim=True)
    factor = (change * difference).sum(dims, keepdim=True) / length.clamp(min=torch.finfo(length.dtype).tiny)
    return wanted - factor * (wanted - wanted_before)
