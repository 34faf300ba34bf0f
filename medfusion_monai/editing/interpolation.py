"""Frames between two images, or between the images of two seeds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medfusion_monai.diffusion.guidance import guided_denoiser
from medfusion_monai.diffusion.samplers import SAMPLERS
from medfusion_monai.editing.edit_inputs import Labels, batches, checked_images, checked_labels, mixed
from medfusion_monai.editing.inversion import Inversion, from_inversion, invert
from medfusion_monai.model import Model, make_sampler
from medfusion_monai.runtime.dtype import autocast
from medfusion_monai.runtime.seeds import derive_seed, generators, randn
from medfusion_monai.runtime.values import check_counts, is_whole
from medfusion_monai.weights.model_info import require_denoiser


@torch.no_grad()
def interpolate(
    model: Model,
    start: Tensor | int,
    end: Tensor | int,
    frames: int = 8,
    label: Labels | None = None,
    batch_size: int = 16,
    **choices: Any,
) -> Tensor:
    """Go from one image to another in the space of the noise, along the sphere (Shoemake 1985).

    Between two images, the first and the last frame are their reconstructions. Between two seeds, they are
    ``model.sample(label, seed=start)`` and ``model.sample(label, seed=end)`` without fresh noise.

    Args:
        model: a loaded model.
        start: an image (C, H, W) in [0, 1] of the model's size, or a seed.
        end: another one of the same kind.
        frames: number of images, both ends included; at least 2.
        label: one class, or one for each end, between which the UNet's predictions are mixed. None, for images only,
            for those that ``classify`` finds.
        batch_size: frames at a time.
        choices: settings of the sampler in place of the model's; between images only ``num_inference_steps``,
            ``spacing`` and ``dtype``.

    Returns:
        (frames, C, H, W) in [0, 1], float32, on the CPU.

    Raises:
        ValueError: for one frame, ends of different kinds, images of another form, or seeds without a label.
    """
    require_denoiser(model.path, model.info)
    check_counts(2, frames=frames)
    weights = torch.linspace(0.0, 1.0, frames, device=model.device)
    if isinstance(start, Tensor) and isinstance(end, Tensor):
        images = torch.stack([_one(model, start, "start"), _one(model, end, "end")])
        inversion = invert(model, images, label, 1.0, batch_size, **choices)
        dtype = choices.get("dtype", torch.float32)
        parts = [_between_images(model, inversion, weights[at], dtype) for at in batches(frames, batch_size)]
    elif is_whole(start) and is_whole(end):
        if label is None:
            raise ValueError(f"label must be given between two seeds: one of {', '.join(model.class_names)}, or two")
        check_counts(0, start=start, end=end)
        labels = checked_labels(model, label, 2)
        parts = [
            _between_seeds(model, (int(start), int(end)), labels, weights[at], choices)
            for at in batches(frames, batch_size)
        ]
    else:
        raise ValueError(
            "start and end must be two images (C, H, W) or two seeds, received a "
            f"{type(start).__name__} and a {type(end).__name__}"
        )
    return torch.cat(parts)


def slerp(start: Tensor, end: Tensor, weights: Tensor) -> Tensor:
    """Interpolate along the great circle between two tensors, (*shape) each, at weights (F,): (F, *shape).

    Opposite or parallel tensors, which have no single great circle, are interpolated linearly.
    """
    cosine = torch.dot(start.flatten(), end.flatten()) / (start.norm() * end.norm()).clamp(min=1e-12)
    angle = cosine.clamp(-1.0, 1.0).acos()
    weights = weights.view(-1, *[1] * start.ndim)
    if float(angle.sin()) < 1e-4:
        return (1.0 - weights) * start + weights * end
    return (((1.0 - weights) * angle).sin() * start + (weights * angle).sin() * end) / angle.sin()


def _one(model: Model, image: Tensor, argument: str) -> Tensor:
    single = image[0] if image.ndim == 4 and len(image) == 1 else image
    return checked_images(model, single[None], argument)[0]


def _between_images(model: Model, inversion: Inversion, weights: Tensor, dtype: torch.dtype) -> Tensor:
    noisy = slerp(inversion.noisy_latents[0], inversion.noisy_latents[1], weights)
    column = weights[:, None, None, None]
    first, last = inversion.defects[:, :1], inversion.defects[:, 1:]
    first_label, last_label = (label.expand(len(weights)) for label in inversion.class_labels)
    denoiser = guided_denoiser(model.network.unet, first_label)
    if not torch.equal(first_label, last_label):
        denoiser = mixed(denoiser, guided_denoiser(model.network.unet, last_label), column)
    between = inversion._replace(noisy_latents=noisy, defects=(1.0 - column) * first + column * last)
    with autocast(model.device, dtype):
        latents = from_inversion(denoiser, between, model.schedule)
    return model.decode(latents).cpu()


def _between_seeds(
    model: Model, seeds: tuple[int, int], labels: Tensor, weights: Tensor, choices: dict[str, Any]
) -> Tensor:
    sampler = make_sampler(model, **{**choices, "eta": 0.0})
    shape = sampler.latent_shape or model.network.latent_shape
    own = [derive_seed("image", seed, int(label), 0) for seed, label in zip(seeds, labels, strict=True)]
    noise = randn(shape, generators(own), model.device)
    first, last = (sampler.denoiser(model.network, label.expand(len(weights))) for label in labels)
    denoiser = first if bool(labels[0] == labels[1]) else mixed(first, last, weights[:, None, None, None])
    chosen = SAMPLERS[sampler.sampler]
    fresh: dict[str, Any] = {"eta": 0.0} if chosen.fresh_noise else {}
    with autocast(model.device, sampler.dtype):
        latents = chosen.sample(
            denoiser,
            slerp(noise[0], noise[1], weights),
            model.schedule,
            sampler.num_inference_steps,
            spacing=sampler.spacing,
            **fresh,
        )
    return model.decode(latents).cpu()
