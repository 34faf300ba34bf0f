"""How good the images of one training are, by the samplers of the bundles' overlays and two that check them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from medfusion_monai.data.training.class_shares import true_shares
from medfusion_monai.demo.phantoms.measurements import class_agreement
from medfusion_monai.diffusion import samplers
from medfusion_monai.diffusion.guidance import guided_denoiser
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.evaluation.metrics.classifier import LabelledImages, scores, train_classifier
from medfusion_monai.evaluation.metrics.fidelity import measure_fidelity
from medfusion_monai.evaluation.metrics.label_steering import steering_figures
from medfusion_monai.evaluation.metrics.similarity import ms_ssim, ssim
from medfusion_monai.networks.unet import UNet
from medfusion_monai.runtime.seeds import derive_seed, generators, randn
from medfusion_monai.sampling.plan import sampling_plan
from study.material import BATCH, Material, Materials, decode, features_of

FAST, CHECK, SHIPPED, SMALL = "unipc_20", "ddim_50", "ddim_30_noise", "unipc_30"
SAMPLERS: Mapping[str, Callable[..., Tensor]] = {
    FAST: lambda denoiser, noise, schedule, draw: samplers.unipc_sample(denoiser, noise, schedule, 20, "logsnr"),
    CHECK: lambda denoiser, noise, schedule, draw: samplers.ddim_sample(denoiser, noise, schedule, 50, eta=0.0),
    SHIPPED: lambda denoiser, noise, schedule, draw: samplers.ddim_sample(
        denoiser, noise, schedule, 30, 1.0, draw, "logsnr"
    ),
    SMALL: lambda denoiser, noise, schedule, draw: samplers.unipc_sample(denoiser, noise, schedule, 30, "logsnr"),
}
"""With ``demo.yaml`` the arms are judged by the first; the second, of the first seed, tells whether that is the
sampler's doing; the third is that of ``train.yaml``, with fresh noise at each step. The fourth is ``small.yaml``'s."""
LOG_SNR = (4.0, 2.0, 0.0, -2.0, -4.0, -6.0)
"""Noise levels of the error of the clean latents; the data's own have unit variance."""
CLASSIFIER_SEEDS = (0, 1, 2)
MOST_CLEAN = 512
"""Held-out images for the error of the clean latents."""


class Judge:
    """Measures images against the training images, the same way for all arms.

    Args:
        materials: what all arms share, with the extractor.
        material: of the arms with the given autoencoder.
        phantoms: modality of the phantoms that the images are of, or None for images of patients.
        num_samples: images of a sample, the classes as often as in training: with other shares the distance would
            reward a network that takes no notice of the label.
    """

    def __init__(self, materials: Materials, material: Material, phantoms: str | None, num_samples: int = 512) -> None:
        self.materials, self.material = materials, material
        self.phantoms, self.num_samples = phantoms, num_samples
        self.class_names = material.recipe["class_names"]
        self.shares = true_shares(materials.images["training"][1], len(self.class_names))

    def plan(self, seed: int) -> tuple[Tensor, list[int]]:
        """Return labels (N,) and seeds of the images that every arm of a seed samples."""
        plan = sampling_plan(
            self.class_names, None, self.num_samples, seed, class_shares="real", real_shares=self.shares
        )
        return torch.tensor([item["label"] for item in plan]), [item["seed"] for item in plan]

    @torch.no_grad()
    def sample(
        self,
        unet: UNet,
        schedule: NoiseSchedule,
        sampler: str,
        seed: int,
        guidance_scale: float = 1.0,
        material: Material | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sample images (N, C, H, W) in [0, 1] and give their labels (N,).

        Args:
            unet: of an arm.
            schedule: of the arm.
            sampler: a name in ``SAMPLERS``.
            seed: of the study.
            guidance_scale: 1 for none.
            material: of the arm, if it has another autoencoder.
        """
        material = material or self.material
        labels, seeds = self.plan(seed)
        latents = []
        for part, own in zip(labels.split(BATCH), torch.tensor(seeds).split(BATCH), strict=True):
            draw = partial(randn, material.latent_shape, generators(own.tolist()))
            latents.append(SAMPLERS[sampler](guided_denoiser(unet, part, guidance_scale), draw(), schedule, draw))
        return decode(material.autoencoder, torch.cat(latents)), labels

    def measure(self, images: Tensor, labels: Tensor) -> dict[str, float | None]:
        """Measure images (N, C, H, W) in [0, 1] and how well they show their labels (N,).

        Returns:
            ``fid``, ``kid``, ``precision`` and ``recall`` against the training images, in the features of the
            extractor; ``accuracy`` and ``auc`` of classifiers of the training images; ``agreement``, the share whose
            measured property fits the label, of phantoms.
        """
        figures = measure_fidelity(
            self.materials.reference(), features_of(self.materials.extractor, images), replicates=0
        )
        probabilities = [scores(classifier, self.for_classifier(images)) for classifier in self.classifiers]
        accuracy, auc = steering_figures(probabilities, labels, replicates=0)
        values = {name: figures[name].value for name in ("fid", "kid", "precision", "recall")}
        values |= {"accuracy": accuracy.value, "auc": auc.value, "agreement": None}
        if self.phantoms is not None:
            shares = class_agreement(images, labels.numpy(), self.phantoms)
            values["agreement"] = sum(shares.values()) / len(shares)
        return values

    @cached_property
    def classifiers(self) -> list[Any]:
        """Classifiers of the training images; they see what tells the classes apart, on patients' images too."""
        images, labels = self.materials.images["training"]
        data = LabelledImages(self.for_classifier(images), torch.tensor(labels))
        return [train_classifier(data, len(self.class_names), seed) for seed in CLASSIFIER_SEEDS]

    def for_classifier(self, images: Tensor) -> Tensor:
        """Return what classifiers see of images (N, C, H, W): of patients, no colour; see ``without_colour``."""
        return without_colour(images) if self.phantoms is None and images.shape[1] == 3 else images

    def evaluate(
        self,
        unet: UNet,
        schedule: NoiseSchedule,
        sampler: str,
        seed: int,
        guidance_scale: float = 1.0,
        material: Material | None = None,
    ) -> tuple[dict[str, Any], Tensor, Tensor]:
        """Sample and measure; give the record, the images and their labels."""
        start = time.process_time()
        images, labels = self.sample(unet, schedule, sampler, seed, guidance_scale, material)
        seconds = {"sampling_seconds": round(time.process_time() - start, 1)}
        record = {"sampler": sampler, "guidance_scale": guidance_scale, "count": len(images), **seconds}
        return {**record, **self.measure(images, labels)}, images, labels

    def baselines(self) -> dict[str, dict[str, Any]]:
        """Measure held-out real images, and what the autoencoder makes of them: the best that an arm can reach.

        As many as are sampled, or all if there are fewer: distances depend on the number of images.
        """
        held_out = self.material.held_out
        rows = subset(len(held_out.labels), self.num_samples)
        images, labels = held_out.images[rows], torch.tensor(held_out.labels)[rows]
        mean = held_out.moments[rows].float().chunk(2, dim=1)[0]
        restored = decode(self.material.autoencoder, self.material.autoencoder.normalize(mean))
        alike = {"ms_ssim": float(ms_ssim(restored, images).mean()), "ssim": float(ssim(restored, images).mean())}
        count = {"count": len(labels)}
        return {
            "real": {**count, **self.measure(images, labels)},
            "reconstructed": {**count, **alike, **self.measure(restored, labels)},
        }


def subset(count: int, most: int) -> Tensor:
    """Return the same random indices of at most ``most`` of ``count`` images, each once."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most]


def without_colour(images: Tensor) -> Tensor:
    """Return RGB images (N, 3, H, W) in [0, 1] as gray (N, 1, H, W) of equal brightness and contrast.

    The stain alone tells some tissues apart, and every generator learns it: this leaves the structure to judge.
    """
    gray = images.mean(dim=1, keepdim=True)
    std, mean = torch.std_mean(gray, dim=(1, 2, 3), keepdim=True)
    return (0.5 + (gray - mean) / (6.0 * std.clamp(min=1e-6))).clamp(0.0, 1.0)


@torch.no_grad()
def clean_error(unet: UNet, schedule: NoiseSchedule, material: Material) -> dict[str, float]:
    """Mean squared error of the clean latents that a network estimates, at fixed noise levels, on held-out images.

    Losses of different predictions and weightings do not compare; this does, though L2 aims at it and L1 does not.

    Returns:
        The error by log-SNR, and the ``geometric_mean`` of all.
    """
    rows = subset(len(material.held_out.labels), MOST_CLEAN)
    moments, labels = material.held_out.moments[rows].float(), torch.tensor(material.held_out.labels)[rows]
    sources = generators([derive_seed("held out", index) for index in range(len(labels))])
    mean, logvar = moments.chunk(2, dim=1)
    shape = material.latent_shape
    latents = material.autoencoder.normalize(mean + (0.5 * logvar).exp() * randn(shape, sources))
    noise = randn(shape, sources)
    errors = {}
    for level in LOG_SNR:
        timestep = nearest_timestep(schedule, level)
        total = 0.0
        for clean, own, label in zip(latents.split(BATCH), noise.split(BATCH), labels.split(BATCH), strict=True):
            timesteps = torch.full((len(clean),), timestep)
            noisy = schedule.add_noise(clean, own, timesteps)
            prediction = unet(noisy, timesteps=timesteps, class_labels=label)
            estimate, _ = schedule.clean_and_noise(prediction, noisy, timestep)
            total += float((estimate - clean).double().square().sum())
        errors[f"{level:g}"] = total / latents.numel()
    return {**errors, "geometric_mean": statistics.geometric_mean(errors.values())}


def nearest_timestep(schedule: NoiseSchedule, log_snr: float) -> int:
    """Return the timestep whose signal-to-noise ratio is nearest to exp(log_snr)."""
    levels: Sequence[float] = [
        2.0 * math.log(signal / sigma) if signal > 0 else -math.inf
        for signal, sigma in zip(schedule.exact_signal, schedule.exact_sigma, strict=True)
    ]
    return min(range(len(levels)), key=lambda index: abs(levels[index] - log_snr))
