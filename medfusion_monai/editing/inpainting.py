"""New content for a part of an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medfusion_monai.diffusion.denoiser import Denoiser, estimate
from medfusion_monai.diffusion.inferer import LatentDiffusionSampler
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.editing.edit_inputs import Labels, batches, checked_labels, image_seeds, images_to_edit
from medfusion_monai.model import Model, make_sampler
from medfusion_monai.networks.autoencoder import Autoencoder
from medfusion_monai.runtime.dtype import autocast
from medfusion_monai.runtime.seeds import generators, randn
from medfusion_monai.runtime.values import check_counts

REPEATS = 1


@torch.no_grad()
def inpaint(
    model: Model,
    images: Tensor,
    mask: Tensor,
    label: Labels,
    seed: int = 0,
    repeats: int = REPEATS,
    batch_size: int = 16,
    **choices: Any,
) -> Tensor:
    """Sample the masked part of images so that it continues the rest (after Lugmayr et al. 2022, RePaint, algorithm 1).

    The latents outside the mask are those of the image at every noise level, and after each step the others are moved
    towards what decodes to the known pixels around the mask (after Song et al. 2024, ReSample). Pixels outside the mask
    stay as they are. What is under the mask has no influence: it is filled from around before the image is encoded.
    Inside the mask, within the length of one latent cell from its edge, the sampled pixels are shifted to meet the
    known ones.

    Args:
        model: a loaded model.
        images: (B, C, H, W) in [0, 1], of the model's size.
        mask: (H, W) for all images, or (B, 1, H, W): true, or not 0, where to sample.
        label: the class to sample, one for all or one per image.
        seed: of the set. A result depends on it and on the image outside the mask, not on the batch.
        repeats: times that each noise level is sampled, so that both parts can adapt; 1 is fastest.
        batch_size: images at a time.
        choices: settings of the sampler in place of the model's. The steps are those of deterministic DDIM.

    Returns:
        (B, C, H, W) in [0, 1], float32, on the CPU.

    Raises:
        ValueError: for images or a mask of another form, a mask that is empty or leaves nothing known, an unknown
            class, or a setting out of range.
    """
    images_to_edit(model, images)
    masks = checked_masks(mask, images)
    check_counts(repeats=repeats)
    labels = checked_labels(model, label, len(images))
    sampler = make_sampler(model, **choices)
    known = filled(images.cpu().float(), masks)
    seeds = image_seeds("inpaint", torch.cat([known, masks.float().expand_as(known)], 2), seed)
    parts = [
        _inpaint(model, known[at], masks[at], labels[at], seeds[at], sampler, repeats)
        for at in batches(len(images), batch_size)
    ]
    return torch.cat(parts)


def checked_masks(mask: Tensor, images: Tensor, argument: str = "mask") -> Tensor:
    """Return masks (B, 1, H, W), booleans on the CPU.

    Raises:
        ValueError: for another size or number than that of the images, and for a mask that is empty or covers all.
    """
    count, _, height, width = images.shape
    masks = mask.detach().cpu() != 0
    if masks.shape == (height, width):
        masks = masks.expand(count, 1, height, width)
    if masks.shape != (count, 1, height, width):
        raise ValueError(
            f"{argument} must be ({height}, {width}) or ({count}, 1, {height}, {width}), as the images, received shape "
            f"{tuple(mask.shape)}"
        )
    covered = masks.flatten(1).sum(1)
    for index, pixels in enumerate(covered.tolist()):
        if pixels in (0, height * width):
            what = "is empty" if pixels == 0 else "covers the whole image"
            raise ValueError(
                f"{argument} of image {index} {what}: mark the pixels to sample by values other than 0, the others by 0"
            )
    return masks


def filled(images: Tensor, masks: Tensor) -> Tensor:
    """Replace masked pixels by smooth values from around them (pull-push, Gortler et al. 1996).

    Args:
        images: (B, C, H, W).
        masks: (B, 1, H, W), true where to fill; not everywhere.
    """
    weights = (~masks).float()
    return torch.where(masks, _pull_push(images * weights, weights), images)


def _pull_push(values: Tensor, weights: Tensor) -> Tensor:
    """Return weighted means of the nearest pixels with weight, from ``values`` that are multiplied by 0 or 1."""
    size = values.shape[-2:]
    if bool((weights > 0).all()):
        return values / weights.clamp(min=1e-12)
    padding = (0, size[1] % 2, 0, size[0] % 2)
    coarse_values, coarse_weights = (F.avg_pool2d(F.pad(part, padding), 2) for part in (values, weights))
    present = coarse_weights > 0
    means = torch.where(present, coarse_values / coarse_weights.clamp(min=1e-12), coarse_values)
    below = _pull_push(means, present.float())
    spread = F.interpolate(below, scale_factor=2, mode="bilinear")[..., : size[0], : size[1]]
    return torch.where(weights > 0, values, spread)


def joined(known: Tensor, sampled: Tensor, masks: Tensor, width: int) -> Tensor:
    """Put sampled pixels under the masks, without a seam.

    The difference between known and sampled pixels at a mask's edge is continued into the mask and fades over
    ``width`` pixels. Pixels outside the masks are exactly the known ones, those further inside exactly the sampled.

    Args:
        known: (B, C, H, W) in [0, 1]; what is under the masks has no influence.
        sampled: (B, C, H, W) in [0, 1].
        masks: (B, 1, H, W), true where to take the sampled pixels.
        width: of the seam, in pixels, at least 1.
    """
    weights = (~masks).float()
    difference = known - sampled
    # Filled from blocks of pixels at first, then from each pixel of the edge, else a step of a twelfth remains there.
    difference = torch.where(masks, _pull_push(difference * weights, weights), difference)
    fade, reached = torch.zeros_like(weights), weights
    for _ in range(width):
        reached = F.max_pool2d(reached, 3, 1, 1)
        fade = fade + reached / (width + 1)
        difference = torch.where(masks, _mean_of_neighbours(difference), difference)
    return torch.where(masks, (sampled + fade * difference).clamp(0.0, 1.0), known)


def _mean_of_neighbours(values: Tensor) -> Tensor:
    """Return the mean of the four neighbours of each pixel of (B, C, H, W); a pixel at the border is its own there."""
    padded = F.pad(values, (1, 1, 1, 1), mode="replicate")
    rows = padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1]
    return (rows + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]) / 4


def _inpaint(
    model: Model,
    known: Tensor,
    masks: Tensor,
    labels: Tensor,
    seeds: Sequence[int],
    sampler: LatentDiffusionSampler,
    repeats: int,
) -> Tensor:
    factor = model.network.autoencoder.downsampling_factor
    latents = model.encode(known)
    cells = F.max_pool2d(masks.float(), factor).bool().to(latents.device)
    denoiser = sampler.denoiser(model.network, labels)
    edge = EdgeFit(model.network.autoencoder, latents, known.to(latents.device), masks.to(latents.device), cells)
    with autocast(model.device, sampler.dtype):
        made = repaint(denoiser, latents, cells, model.schedule, sampler.timesteps, seeds, repeats, edge)
    return joined(known, model.decode(made).cpu(), masks, factor)


class EdgeFit:
    """Moves latents towards what decodes to the known pixels of cells that the mask touches, and of the cells around.

    Latent cells that a mask covers in part are sampled whole, so that without this their known pixels would count for
    nothing, and what they show would be cut at the mask. Each call is one gradient step of Polyak's length, which ends
    where the error is that of the image's own latents: the autoencoder reaches no smaller one.

    Args:
        autoencoder: decodes the latents.
        latents: (B, L, h, w) of ``known``, clean.
        known: (B, C, H, W) in [0, 1]; what is under the masks has no influence.
        masks: (B, 1, H, W), true where pixels are sampled.
        cells: (B, 1, h, w), true where latents are sampled; only these are moved.
    """

    def __init__(self, autoencoder: Autoencoder, latents: Tensor, known: Tensor, masks: Tensor, cells: Tensor) -> None:
        self.autoencoder, self.cells = autoencoder, cells
        self.known = known * 2 - 1
        around = F.max_pool2d(cells.float(), 3, stride=1, padding=1)
        self.weights = F.interpolate(around, size=known.shape[-2:]) * ~masks
        self.least = self._error(latents)

    def __call__(self, clean: Tensor) -> Tensor:
        """Return clean latents (B, L, h, w) after one step."""
        with torch.enable_grad():
            moved = clean.detach().requires_grad_()
            error = self._error(moved)
            (slope,) = torch.autograd.grad(error.sum(), moved)
        slope = slope * self.cells
        excess = (error.detach() - self.least).clamp(min=0.0)
        length = excess / slope.flatten(1).square().sum(1).clamp(min=1e-12)
        return clean - length.view(-1, 1, 1, 1) * slope

    def _error(self, latents: Tensor) -> Tensor:
        """Return the sum of squared errors of the pixels that count, (B,)."""
        decoded = self.autoencoder.decode_stage_2_outputs(latents).float()
        return ((decoded - self.known) * self.weights).square().flatten(1).sum(1)


def repaint(
    denoiser: Denoiser,
    latents: Tensor,
    cells: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int],
    seeds: Sequence[int],
    repeats: int = REPEATS,
    fit: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Sample the latents in some cells given the others.

    After each step the known cells get the image's latents with fresh noise. All but the last time, the step is then
    undone by adding noise, so that the next attempt sees both parts together. The last time, ``fit`` corrects the
    estimate of the clean latents.

    Args:
        denoiser: the network with its condition.
        latents: (B, L, h, w), clean; those in ``cells`` have no influence.
        cells: (B, 1, h, w), true where to sample.
        schedule: the schedule that the network was trained with.
        timesteps: descending, to 0.
        seeds: one per image.
        repeats: times that each step is taken.
        fit: maps estimates of the clean latents to better ones; None for the estimates themselves.

    Returns:
        (B, L, h, w), clean; in the other cells the given ones.
    """
    sources = generators(seeds)

    def fresh() -> Tensor:
        return randn(latents.shape[1:], sources, latents.device)

    noisy = fresh()
    start = timesteps[0]
    known = schedule.exact_signal[start] * latents + schedule.exact_sigma[start] * noisy
    noisy = torch.where(cells, noisy, known)
    for start, end in pairwise(timesteps):
        for remaining in reversed(range(repeats)):
            clean, noise = estimate(denoiser, noisy, schedule, start)
            if fit is not None and not remaining:
                clean = fit(clean)
                noise = (noisy - schedule.exact_signal[start] * clean) / schedule.exact_sigma[start]
            stepped = schedule.exact_signal[end] * clean + schedule.exact_sigma[end] * noise
            known = schedule.exact_signal[end] * latents + schedule.exact_sigma[end] * fresh()
            stepped = torch.where(cells, stepped, known)
            noisy = _noised(stepped, schedule, end, start, fresh()) if remaining else stepped
    clean, _ = estimate(denoiser, noisy, schedule, timesteps[-1])
    return torch.where(cells, clean if fit is None else fit(clean), latents)


def _noised(latents: Tensor, schedule: NoiseSchedule, low: int, high: int, noise: Tensor) -> Tensor:
    """Diffuse noisy latents from one timestep to a higher one."""
    ratio = schedule.exact_signal[high] / schedule.exact_signal[low]
    variance = schedule.exact_sigma[high] ** 2 - (ratio * schedule.exact_sigma[low]) ** 2
    return ratio * latents + max(0.0, variance) ** 0.5 * noise
