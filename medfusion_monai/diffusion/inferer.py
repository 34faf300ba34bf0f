"""The inferer of the bundles: labels and seeds in, images out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from monai.inferers.inferer import Inferer
from torch import Tensor

from medfusion_monai.diffusion.denoiser import Denoiser
from medfusion_monai.diffusion.guidance import (
    Guide,
    autoguided_denoiser,
    check_guide_scale,
    checked_interval,
    guided_denoiser,
    within_interval,
)
from medfusion_monai.diffusion.samplers import SAMPLERS
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.diffusion.spacing import Spacing
from medfusion_monai.networks.described import description_digest
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.networks.small_decoder import SmallDecoder
from medfusion_monai.networks.unet import NO_LABEL
from medfusion_monai.runtime.dtype import DTYPES, autocast
from medfusion_monai.runtime.errors import is_out_of_memory
from medfusion_monai.runtime.out_of_memory import BatchTooLargeError, largest_that_fits
from medfusion_monai.runtime.seeds import generators, randn
from medfusion_monai.runtime.values import is_number, is_whole

SETTINGS = (
    "sampler",
    "num_inference_steps",
    "spacing",
    "guidance_scale",
    "eta",
    "negative_label",
    "guidance_interval",
)
"""Settings of a sampler that are stored with weights and listed in manifests."""


FULL_DECODER = "full"
"""Name of the autoencoder's own decoder, in settings and manifests."""


class LatentDiffusionSampler(Inferer):
    """Samples images from a ``Medfusion`` network; an image depends only on weights, label, seed and these settings.

    Latents, guidance and the sampler's arithmetic are float32 whatever ``dtype`` the networks compute in.

    Args:
        schedule: the schedule that the UNet was trained with.
        latent_shape: (channels, height, width) of the latents; None takes those of the network's ``image_size``.
        num_inference_steps: calls of the UNet, from 1 to the schedule's timesteps; None for 150 (published) with
            ``ddim`` and 30 with the others, see ``SAMPLERS``.
        guidance_scale: weight of classifier-free guidance; 1 is none.
        eta: of ``ddim``: 0 for the deterministic sampler, 1 for the published stochastic one. None for 1, or for 0
            if the sampler or the schedule allows no fresh noise.
        negative_label: label to steer away from, one for all or one per label; the unconditional prediction if None.
        null_label: label that stands for 'no label' in the UNet's training.
        sampler: a name in ``SAMPLERS``: ``ddim``, as published, or ``dpm_solver`` (DPM-Solver++) or ``unipc``, of
            second order and without fresh noise; ``distilled`` for weights that are tuned for few steps, whose
            ``guidance_scale`` only states what they were tuned with.
        spacing: which timesteps are used, see ``schedule_timesteps``; None for ``linspace`` (published) with ``ddim``
            and ``logsnr`` with the others.
        dtype: of the networks' convolutions and matrix products, by autocast: float32, bfloat16 or float16.
        decode_batch_size: latents decoded at a time, to limit memory; None for all.
        guidance_interval: noise levels, ``[low, high]`` as sigma / signal, between which guidance is used (see
            ``within_interval``); None for all.
        guide: a worse version of the UNet, whose prediction takes the place of the unconditional one (see
            ``autoguided_denoiser``); moved to the device of the labels.
        decoder: of the latents, in place of the autoencoder's own; moved likewise.

    Raises:
        ValueError: for a setting out of range, an eta that the sampler does not support, a negative label, an interval
            or a guide without guidance, a guide with a scale below 1, or both a negative label and a guide.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        latent_shape: Sequence[int] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        eta: float | None = None,
        negative_label: int | Sequence[int] | None = None,
        null_label: int = NO_LABEL,
        sampler: str = "ddim",
        spacing: Spacing | None = None,
        dtype: torch.dtype = torch.float32,
        decode_batch_size: int | None = None,
        guidance_interval: Sequence[float] | None = None,
        guide: Guide | None = None,
        decoder: SmallDecoder | None = None,
    ) -> None:
        super().__init__()
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {tuple(SAMPLERS)}, received {sampler!r}")
        _check_guidance(
            guidance_scale, negative_label=negative_label, guidance_interval=guidance_interval, guidance_model=guide
        )
        if dtype not in DTYPES.values():
            raise ValueError(f"dtype must be one of {tuple(DTYPES.values())}, received {dtype!r}")
        if decode_batch_size is not None and (not is_whole(decode_batch_size) or decode_batch_size < 1):
            raise ValueError(f"decode_batch_size must be a whole number of at least 1, received {decode_batch_size!r}")
        self.schedule = schedule
        self.latent_shape = None if latent_shape is None else tuple(latent_shape)
        self.sampler = sampler
        self.num_inference_steps = (
            SAMPLERS[sampler].num_inference_steps if num_inference_steps is None else num_inference_steps
        )
        self.spacing: Spacing = SAMPLERS[sampler].spacing if spacing is None else spacing
        self.guidance_scale = float(guidance_scale)
        self.eta = _checked_eta(eta, sampler, schedule)
        if SAMPLERS[sampler].tuned:
            _refuse_options(sampler, negative_label=negative_label, guidance_interval=guidance_interval, guide=guide)
        self.negative_label = negative_label
        self.guidance_interval = checked_interval(guidance_interval)
        self.guide, self.decoder = guide, decoder
        self.null_label = null_label
        self.dtype = dtype
        self.decode_batch_size = decode_batch_size
        self.timesteps  # noqa: B018  raises if out of range

    @property
    def timesteps(self) -> list[int]:
        """The timesteps of the UNet's calls, in order."""
        return SAMPLERS[self.sampler].timesteps(self.schedule, self.num_inference_steps, self.spacing)

    def settings(self) -> dict[str, Any]:
        """Return the settings that a sample depends on besides weights, label, seed and schedule, as plain data."""
        return {name: getattr(self, name) for name in SETTINGS}

    def identity(self, network: Medfusion) -> dict[str, Any]:
        """Return what identifies networks, schedule, guide and decoder of a sample, as plain data."""
        return {
            "decoder": FULL_DECODER if self.decoder is None else self.decoder.sha256,
            "guidance_model": "none" if self.guide is None else self.guide.sha256,
            "prediction_type": self.schedule.prediction_type,
            "networks": description_digest(network.autoencoder, network.unet, self.schedule),
        }

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self, inputs: Tensor, network: Medfusion, seeds: Sequence[int] | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Sample images (B, C, H, W) in [0, 1], float32.

        Args:
            inputs: labels (B,), integers.
            network: a ``Medfusion``: ``network.unet`` and ``network.autoencoder``.
            seeds: one per sample; drawn from the global random state if None.
            args: ignored, for the interface of MONAI's inferers.
            kwargs: ignored likewise.

        Raises:
            ValueError: for anything but integers of shape (B,).
            BatchTooLargeError: if they do not fit into memory; states the largest number measured to fit.
        """
        _refuse_images(inputs)
        if seeds is None:
            seeds = [int(seed) for seed in torch.randint(2**62, inputs.shape[:1])]
        try:
            return self._sample(inputs, network, seeds)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
        # Only once the error is released, whose traceback holds the tensors that filled the memory.
        raise self._too_large(inputs, network, seeds, reason)

    @torch.no_grad()
    def _sample(self, inputs: Tensor, network: Medfusion, seeds: Sequence[int]) -> Tensor:
        latents = self.sample_latents(inputs, network, seeds)
        parts = latents.split(self.decode_batch_size or len(latents))
        small = self.decoder
        decode = network.autoencoder.decode_stage_2_outputs if small is None else small.to(latents.device)
        with autocast(inputs.device, self.dtype):
            images = [decode(part).float() for part in parts]
        return (torch.cat(images) * 0.5 + 0.5).clamp(0.0, 1.0)

    def _too_large(self, inputs: Tensor, network: Medfusion, seeds: Sequence[int], reason: str) -> BatchTooLargeError:
        short = copy.copy(self)  # one step needs as much memory as all of them
        short.num_inference_steps = 1
        if not SAMPLERS[self.sampler].tuned:
            short.sampler, short.eta = "ddim", 0.0
        short.guidance_interval = None  # the only step must be a guided one
        fits = largest_that_fits(lambda count: short._sample(inputs[:count], network, seeds[:count]), len(inputs))
        advice = (
            f"{fits} were measured to fit: sample with --batch_size {fits}"
            if fits
            else "not even one does: free memory used by other programs, or use narrower networks"
        )
        return BatchTooLargeError(
            f"{len(inputs)} images at a time do not fit into the memory of {inputs.device}; {advice} ({reason})"
        )

    @torch.no_grad()
    def sample_latents(self, inputs: Tensor, network: Medfusion, seeds: Sequence[int]) -> Tensor:
        """Sample unit-variance latents (B, *latent_shape), float32, of labels (B,) and as many seeds.

        Raises:
            ValueError: for anything but integers of shape (B,).
        """
        _refuse_images(inputs)
        sources, shape = generators(seeds), self.latent_shape or network.latent_shape

        def draw_noise() -> Tensor:
            return randn(shape, sources, inputs.device)

        denoiser = self.denoiser(network, inputs)
        sampler = SAMPLERS[self.sampler]
        fresh: dict[str, Any] = {"eta": self.eta, "draw_noise": draw_noise} if sampler.fresh_noise else {}
        settings = (self.schedule, self.num_inference_steps)
        with autocast(inputs.device, self.dtype):  # around all steps, so that weights are converted once
            return sampler.sample(denoiser, draw_noise(), *settings, spacing=self.spacing, **fresh)

    def denoiser(self, network: Medfusion, labels: Tensor) -> Denoiser:
        """Return the UNet of a network with labels (B,) and this sampler's guidance."""
        unet, scale = network.unet, self.guidance_scale
        if SAMPLERS[self.sampler].tuned:  # which has learned it
            return guided_denoiser(unet, labels)
        if self.guide is None:
            guided = guided_denoiser(unet, labels, scale, self.negative_label, self.null_label)
        else:
            guided = autoguided_denoiser(unet, self.guide.to(labels.device).unet, labels, scale)
        return within_interval(guided, guided_denoiser(unet, labels), self.schedule, self.guidance_interval)


def _check_guidance(scale: Any, **options: Any) -> None:
    if not is_number(scale):
        raise ValueError(f"guidance_scale must be a number, 1 for no guidance, received {scale!r}")
    for name, value in options.items():
        if value is not None and scale == 1.0:
            raise ValueError(f"{name} has no effect at guidance_scale 1: raise guidance_scale or drop {name}")
    if options["guidance_model"] is None:
        return
    if options["negative_label"] is not None:
        raise ValueError("negative_label and guidance_model are two ways of guidance: drop one of them")
    check_guide_scale(scale)


def _refuse_images(inputs: Tensor) -> None:
    if inputs.ndim != 1 or inputs.is_floating_point():
        raise ValueError(
            f"this inferer samples images from labels, integers of shape (B,), but received {inputs.dtype} of shape "
            f"{tuple(inputs.shape)}. To reconstruct images, merge configs/image_to_image.yaml after inference.yaml"
        )


def _refuse_options(sampler: str, **options: Any) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(
            f"{', '.join(given)} cannot be chosen with sampler {sampler!r}, whose weights have learned their guidance: "
            "leave it out, or choose weights that are not tuned for few steps"
        )


def _checked_eta(eta: float | None, sampler: str, schedule: NoiseSchedule) -> float:
    if eta is None:
        return 1.0 if SAMPLERS[sampler].fresh_noise and schedule.variance_preserving else 0.0
    if not is_number(eta) or not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must be between 0 and 1, received {eta!r}")
    if eta > 0.0 and not SAMPLERS[sampler].fresh_noise:
        raise ValueError(
            f"eta {eta:g} requires fresh noise, which sampler {sampler!r} does not support: leave eta out (--eta "
            "null), or choose sampler ddim"
        )
    if eta > 0.0 and not schedule.variance_preserving:
        raise ValueError(
            f"eta must be 0, or left out, with schedule 'flow', which allows no fresh noise, received {eta:g}"
        )
    return float(eta)
