"""What all edits ask of images, classes and settings, and how they draw noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from medfusion_monai.data.reading.images import pixel_digest
from medfusion_monai.diffusion.denoiser import Denoiser
from medfusion_monai.diffusion.inferer import LatentDiffusionSampler
from medfusion_monai.model import Model, make_sampler
from medfusion_monai.networks.unet import NO_LABEL
from medfusion_monai.runtime.seeds import derive_seed
from medfusion_monai.runtime.values import check_counts, is_number
from medfusion_monai.sampling.plan import parse_label
from medfusion_monai.weights.model_info import require_denoiser

Labels = int | str | Sequence[int | str] | Tensor
"""One class for all images, by number or name, or one per image."""

PLAIN_CHOICES = ("num_inference_steps", "spacing", "dtype")
"""Settings of a sampler that an edit without the sampler's own guidance takes."""


def checked_images(model: Model, images: Tensor, argument: str = "images") -> Tensor:
    """Return images; raise a ValueError unless they are (B, C, H, W) with the model's channels and size, B >= 1."""
    channels, (height, width) = model.image_channels, model.image_size
    wanted = (channels, height, width)
    if not isinstance(images, Tensor) or images.ndim != 4 or tuple(images.shape[1:]) != wanted or not len(images):
        found = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else f"a {type(images).__name__}"
        raise ValueError(
            f"{argument} must be a tensor (B, {channels}, {height}, {width}) in [0, 1], the model's form, received "
            f"{found}: read files with medfusion_monai.model.make_preprocessing(model)"
        )
    return images


def images_to_edit(model: Model, images: Tensor, argument: str = "images") -> Tensor:
    """Return images as ``checked_images`` does, if the model's UNet removes noise.

    Raises:
        WeightsError: for a GAN, and for weights that are tuned for few steps.
    """
    require_denoiser(model.path, model.info)
    return checked_images(model, images, argument)


def checked_labels(model: Model, label: Labels, count: int, argument: str = "label", unknown: bool = False) -> Tensor:
    """Return one label per image, (count,), on the model's device; ``NO_LABEL`` is one if ``unknown``.

    Raises:
        ValueError: for an unknown class, or another number of labels than images.
    """
    given = label.tolist() if isinstance(label, Tensor) else label
    entries = list(given) if isinstance(given, list | tuple) else [given] * count
    if len(entries) != count:
        raise ValueError(f"{argument} has {len(entries)} entries for {count} images: give one class, or one per image")
    numbers = [
        NO_LABEL if unknown and entry == NO_LABEL else parse_label(entry, model.class_names, argument)
        for entry in entries
    ]
    return torch.tensor(numbers, device=model.device)


def plain_sampler(model: Model, choices: Mapping[str, Any]) -> LatentDiffusionSampler:
    """Return the sampler whose timesteps and dtype an edit uses; the edit brings its own guidance.

    Raises:
        ValueError: for a setting that such an edit does not take.
    """
    unknown = sorted(choices.keys() - set(PLAIN_CHOICES))
    if unknown:
        raise ValueError(f"{', '.join(unknown)} cannot be chosen for this edit: use {', '.join(PLAIN_CHOICES)}")
    return make_sampler(model, **choices)


def noise_levels(timesteps: Sequence[int], strength: Any) -> list[int]:
    """Return the last of descending timesteps: the share ``strength`` of their steps, at least one.

    Raises:
        ValueError: for a strength outside (0, 1], or fewer than two timesteps.
    """
    if not is_number(strength) or not 0.0 < strength <= 1.0:
        raise ValueError(
            "strength must be above 0 and at most 1, the share of the noise levels that are used, received "
            f"{strength!r}"
        )
    if len(timesteps) < 2:
        raise ValueError("num_inference_steps must be at least 2 for an edit, received 1")
    return list(timesteps[-1 - max(1, round(strength * (len(timesteps) - 1))) :])


def image_seeds(purpose: str, images: Tensor, seed: int, n: int = 1) -> list[int]:
    """Return ``n`` seeds per image of (B, C, H, W) in [0, 1], the first image's first.

    They follow from ``seed`` and the image's pixels: a result depends neither on the batch nor on the place in it.

    Raises:
        ValueError: for a seed below 0 or an n below 1.
    """
    check_counts(n=n)
    check_counts(0, seed=seed)
    digests = [pixel_digest(image.numpy()) for image in images.detach().cpu().float()]
    return [derive_seed(purpose, seed, digest, index) for digest in digests for index in range(n)]


def batches(count: int, batch_size: int) -> Iterator[slice]:
    """Yield slices that cover ``count`` items; raise a ValueError for a batch size below 1."""
    check_counts(batch_size=batch_size)
    yield from (slice(start, start + batch_size) for start in range(0, count, batch_size))


def mixed(first: Denoiser, second: Denoiser, weight: float | Tensor) -> Denoiser:
    """Return the denoiser ``first + weight * (second - first)``.

    With a weight above 1 this is guidance from the first towards the second (Ho and Salimans 2022, equation 6).

    Args:
        first: a denoiser.
        second: another one.
        weight: a number, or one per sample as (B, 1, 1, 1).
    """

    def predict(latents: Tensor, timesteps: Tensor) -> Tensor:
        start = first(latents, timesteps)
        return start + weight * (second(latents, timesteps) - start)

    return predict
