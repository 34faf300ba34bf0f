"""Whether the denoising loss separates training images from others: the loss attack on diffusion models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import Dataset
from torch import Tensor, nn
from torch.utils.data import default_collate

from medfusion_monai.audit.statistics import LEAST
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.evaluation.metrics.intervals import Figure, bootstrap_weights, figure_within
from medfusion_monai.evaluation.metrics.label_steering import areas_under_curve
from medfusion_monai.evaluation.metrics.set_metrics import measure_images
from medfusion_monai.model import Model, make_preprocessing
from medfusion_monai.runtime.distributed import from_first
from medfusion_monai.runtime.seeds import derive_seed, generators, randn
from medfusion_monai.training.prepare_batch import to_network

TIMESTEPS = (10, 25, 50, 100, 150, 200)
"""Of 1000: those whose losses separated best in ``benchmarks/canaries.py``; later, nothing is left of the image."""
FALSE_POSITIVES = 0.01
FEWEST = 99
"""Fewest images outside training for which a true-positive rate at 1% false positives is reported."""


def membership_of(
    model: Model,
    training: Sequence[Mapping[str, Any]],
    held_out: Sequence[Mapping[str, Any]],
    most: int = 1000,
    replicates: int = 1000,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Measure how well the denoising loss separates training images from others, of the same classes and read alike.

    Args:
        model: that is audited.
        training: items with ``image`` (path) and ``label``.
        held_out: likewise of images that were not trained on.
        most: images per set at most, approximately.
        replicates: resampled sets per interval.
        batch_size: images per batch.
        device: where to compute.
        seed: of the choice of images, their noise and the resampling.

    Returns:
        Figures ``auc`` and ``tpr_at_1_fpr``, ``images`` of each set, ``timesteps``; a withheld figure has a note.
    """
    chosen = balanced(training, held_out, most, seed)
    count = len(chosen[0])
    if count < LEAST:
        note = f"withheld: {count} images per set, in equal classes; at least {LEAST} are needed"
        return {"auc": Figure(None, note=note).as_dict()}
    losses = []
    for items in chosen:
        dataset: Any = Dataset(items, make_preprocessing(model))
        losses.append(denoising_losses(model.network, model.schedule, dataset, TIMESTEPS, 2, seed, batch_size, device))
    figures = from_first(lambda: membership_figures(*membership_scores(*losses), replicates=replicates, seed=seed))
    return {
        **{name: figure.as_dict() for name, figure in figures.items()},
        "images": count,
        "timesteps": list(TIMESTEPS),
    }


def balanced(
    training: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]], most: int, seed: int = 0
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Draw as many items of each class from one set as from the other, at most about ``most`` per set."""
    share = min(1.0, most / max(1, len(held_out)))
    chosen: tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]] = ([], [])
    for label in sorted({item["label"] for item in held_out}):
        members = [[item for item in items if item["label"] == label] for items in (training, held_out)]
        number = min(len(members[0]), round(share * len(members[1])))
        for place, (items, kept) in enumerate(zip(members, chosen, strict=True)):
            order = np.random.default_rng(derive_seed("membership", seed, place, label)).permutation(len(items))
            kept += [items[index] for index in sorted(order[:number].tolist())]
    return chosen


@torch.no_grad()
def denoising_losses(
    network: Any,
    schedule: NoiseSchedule,
    items: Sequence[dict[str, Any]],
    timesteps: Sequence[int] = TIMESTEPS,
    draws: int = 2,
    seed: int = 0,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Measure how well a model denoises images, each with its label.

    Latents are the posterior's mean. Image k of every call gets the same noise, so sets differ by their images only.

    Args:
        network: a ``Medfusion``.
        schedule: of its training.
        items: ``image`` (C, H, W) in [0, 1] and ``label``; a data set that reads them when indexed.
        timesteps: of a schedule of 1000, scaled to the schedule's length.
        draws: noise samples per timestep.
        seed: of the noise.
        batch_size: images at once.
        device: where to compute.

    Returns:
        (N, T), the mean squared error of the prediction at each timestep.
    """
    network = network.to(device).eval()
    steps = [min(schedule.num_train_timesteps - 1, t * schedule.num_train_timesteps // 1000) for t in timesteps]

    def measure(places: range) -> Tensor:
        batch = default_collate([items[place] for place in places])
        posterior = network.autoencoder.encode(to_network(batch["image"], torch.device(device)))
        latents = network.autoencoder.normalize(posterior.mean)
        labels = torch.as_tensor(batch["label"]).to(device)
        sources = generators(derive_seed("membership", seed, place) for place in places)
        columns = [
            torch.stack([_error(network.unet, schedule, latents, labels, step, sources) for _ in range(draws)]).mean(0)
            for step in steps
        ]
        return torch.stack(columns, dim=1)

    return measure_images(measure, len(items), batch_size, [len(steps)], device, "membership")


def _error(
    unet: nn.Module, schedule: NoiseSchedule, latents: Tensor, labels: Tensor, step: int, sources: Sequence[Any]
) -> Tensor:
    """Mean squared error (B,) of a prediction at one timestep."""
    noise = randn(latents.shape[1:], sources, latents.device)
    timesteps = torch.full(latents.shape[:1], step, device=latents.device)
    prediction = unet(schedule.add_noise(latents, noise, timesteps), timesteps=timesteps, class_labels=labels)
    return (prediction - schedule.target(latents, noise, timesteps)).square().mean(dim=(1, 2, 3))


def membership_scores(members: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Turn losses (N, T) and (M, T) into scores (N,) and (M,), higher for likelier training images.

    Each timestep has the same weight: its losses are divided by their mean over both sets.
    """
    scale = torch.cat([members, others]).mean(dim=0).clamp(min=1e-12)
    return -(members / scale).mean(dim=1), -(others / scale).mean(dim=1)


def membership_figures(members: Tensor, others: Tensor, replicates: int = 1000, seed: int = 0) -> dict[str, Figure]:
    """Measure how well scores separate training images from others.

    Args:
        members: (N,) scores of training images.
        others: (M,) scores of images that were not trained on.
        replicates: resampled sets per interval; each of the two sets is resampled on its own.
        seed: of the resampling.

    Returns:
        ``auc`` (0.5: the model reveals nothing), and ``tpr_at_1_fpr``, the share of the training images that are found
        when 1% of the others are mistaken for them (Carlini et al. 2022: an attack that is certain about a few patients
        harms them, regardless of its average).
    """
    ones = torch.ones(1, len(members), dtype=torch.float64), torch.ones(1, len(others), dtype=torch.float64)
    drawn = bootstrap_weights(len(members), replicates, seed), bootstrap_weights(len(others), replicates, seed + 1)
    values = torch.cat([members, others]).double()
    labels = torch.cat([torch.ones(len(members)), torch.zeros(len(others))]).long()
    columns = torch.stack([-values, values], dim=1)
    auc, aucs = (areas_under_curve(columns, labels, torch.cat(list(weights), dim=1)) for weights in (ones, drawn))
    figures = {"auc": figure_within(float(auc[0]), aucs, 0.0, 1.0)}
    if len(others) < FEWEST:
        note = f"{len(others)} images outside training: 1% of them is less than one. At least {FEWEST} are needed"
        return figures | {"tpr_at_1_fpr": Figure(None, note=note)}
    rate, rates = (_true_positives(members.double(), others.double(), *weights) for weights in (ones, drawn))
    return figures | {"tpr_at_1_fpr": figure_within(float(rate[0]), rates, 0.0, 1.0)}


def _true_positives(members: Tensor, others: Tensor, member_weights: Tensor, other_weights: Tensor) -> Tensor:
    """Shares (R,) of members above the score that 1% of the others exceed, for weights (R, N) and (R, M)."""
    others, order = others.sort(descending=True)
    above = other_weights[:, order].cumsum(dim=1)
    # The first of the others beyond the allowed false positives; a member has to exceed it.
    allowed = math.floor(FALSE_POSITIVES * len(others) + 1e-9)
    limit = others[(above > allowed).long().argmax(dim=1)]
    members, order = members.sort()
    weights = member_weights[:, order]
    below = torch.cat([weights.new_zeros(len(weights), 1), weights.cumsum(dim=1)], dim=1)
    reached = torch.searchsorted(members, limit, right=True)
    return 1 - below.gather(1, reached[:, None])[:, 0] / below[:, -1]
