"""New images that resemble given ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medfusion_monai.diffusion.denoiser import estimate
from medfusion_monai.diffusion.inferer import LatentDiffusionSampler
from medfusion_monai.editing.diffusion_classifier import own_labels
from medfusion_monai.editing.edit_inputs import Labels, batches, image_seeds, images_to_edit, noise_levels
from medfusion_monai.editing.inversion import ddim_walk
from medfusion_monai.model import Model, make_sampler
from medfusion_monai.runtime.dtype import autocast
from medfusion_monai.runtime.seeds import generators, randn


@torch.no_grad()
def variations(
    model: Model,
    images: Tensor,
    label: Labels | None = None,
    strength: float = 0.5,
    n: int = 1,
    seed: int = 0,
    batch_size: int = 16,
    **choices: Any,
) -> Tensor:
    """Add noise to images and denoise them again (Meng et al. 2022, SDEdit).

    Args:
        model: a loaded model.
        images: (B, C, H, W) in [0, 1], of the model's size.
        label: the class to denoise under, one for all or one per image; None for the one that ``classify`` finds.
        strength: share of the noise levels that are used, in (0, 1]; with 1 little but the class remains.
        n: variations per image.
        seed: of the set. A variation depends on it, the image and its number, not on the batch.
        batch_size: variations at a time.
        choices: settings of the sampler in place of the model's. The steps are those of deterministic DDIM.

    Returns:
        (B * n, C, H, W) in [0, 1], float32, on the CPU; the variations of the first image first.

    Raises:
        ValueError: for images of another form, an unknown class, or a setting out of range.
    """
    images_to_edit(model, images)
    sampler = make_sampler(model, **choices)
    noise_levels(sampler.timesteps, strength)
    seeds = image_seeds("variation", images, seed, n)
    labels = own_labels(model, images, label, batch_size).repeat_interleave(n)
    latents = torch.cat([model.encode(images[at]) for at in batches(len(images), batch_size)]).repeat_interleave(n, 0)
    parts = batches(len(seeds), batch_size)
    return torch.cat([vary(model, latents[at], labels[at], seeds[at], sampler, strength).cpu() for at in parts])


@torch.no_grad()
def vary(
    model: Model,
    latents: Tensor,
    labels: Tensor,
    seeds: Sequence[int],
    sampler: LatentDiffusionSampler,
    strength: float,
) -> Tensor:
    """Return one variation (B, C, H, W) of each image, by its latents, from one seed each, under labels (B,)."""
    schedule, timesteps = model.schedule, noise_levels(sampler.timesteps, strength)
    noise = randn(latents.shape[1:], generators(seeds), latents.device)
    noisy = schedule.exact_signal[timesteps[0]] * latents + schedule.exact_sigma[timesteps[0]] * noise
    denoiser = sampler.denoiser(model.network, labels.to(latents.device))
    with autocast(model.device, sampler.dtype):
        clean, _ = estimate(denoiser, ddim_walk(denoiser, noisy, schedule, timesteps), schedule, timesteps[-1])
    return model.decode(clean)
