"""Whether the denoising loss tells training images from others: the loss attack on diffusion models."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medfusion_monai.diffusion.randomness import derive_seed, generators, randn
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.metrics.intervals import Figure, bootstrap_weights, figure_within
from medfusion_monai.metrics.label_steering import areas_under_curve
from medfusion_monai.training.prepare_batch import to_network

TIMESTEPS = (10, 25, 50, 100, 150, 200)
"""Of 1000: those at which losses told most in ``benchmarks/canaries.py``; later there is nothing of the image left."""
FALSE_POSITIVES = 0.01
FEWEST = 99
"""Images outside training below which a true-positive rate at 1% false positives is not told."""


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

    Latents are the posterior's mean. Image k of every call gets the same noise, so that sets differ by their images.

    Args:
        network: a ``Medfusion``.
        schedule: that it was trained with.
        items: ``image`` (C, H, W) in [0, 1] and ``label``; a data set that reads them when asked for.
        timesteps: of a schedule of 1000, scaled to the schedule's length.
        draws: noises a timestep.
        seed: of the noise.
        batch_size: images at once.
        device: where to compute.

    Returns:
        (N, T), the mean squared error of the prediction at each timestep.
    """
    network = network.to(device).eval()
    steps = [min(schedule.num_train_timesteps - 1, t * schedule.num_train_timesteps // 1000) for t in timesteps]
    losses, first = [], 0
    batches: Iterable[dict[str, Any]] = DataLoader(items, batch_size)  # type: ignore[arg-type]
    for batch in batches:
        posterior = network.autoencoder.encode(to_network(batch["image"], torch.device(device)))
        latents = network.autoencoder.normalize(posterior.mean)
        labels = torch.as_tensor(batch["label"]).to(device)
        sources = generators(derive_seed("membership", seed, first + k) for k in range(len(latents)))
        first += len(latents)
        columns = [
            torch.stack([_error(network.unet, schedule, latents, labels, step, sources) for _ in range(draws)]).mean(0)
            for step in steps
        ]
        losses.append(torch.stack(columns, dim=1).cpu())
    return torch.cat(losses)


def _error(
    unet: nn.Module, schedule: NoiseSchedule, latents: Tensor, labels: Tensor, step: int, sources: Sequence[Any]
) -> Tensor:
    """Mean squared error (B,) of a prediction at one timestep."""
    noise = randn(latents.shape[1:], sources, latents.device)
    timesteps = torch.full(latents.shape[:1], step, device=latents.device)
    prediction = unet(schedule.add_noise(latents, noise, timesteps), timesteps=timesteps, class_labels=labels)
    return (prediction - schedule.target(latents, noise, timesteps)).square().mean(dim=(1, 2, 3))


def membership_scores(members: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Turn losses (N, T) and (M, T) into scores (N,) and (M,), the higher the likelier a training image.

    Each timestep counts alike: its losses are divided by their mean over both sets.
    """
    scale = torch.cat([members, others]).mean(dim=0).clamp(min=1e-12)
    return -(members / scale).mean(dim=1), -(others / scale).mean(dim=1)


def membership_figures(members: Tensor, others: Tensor, replicates: int = 1000, seed: int = 0) -> dict[str, Figure]:
    """Tell how well scores separate training images from others.

    Args:
        members: (N,) scores of training images.
        others: (M,) scores of images that no training has seen.
        replicates: resampled sets behind the intervals, each set within itself.
        seed: of the resampling.

    Returns:
        ``auc`` (0.5: the model tells nothing), and ``tpr_at_1_fpr``, the share of the training images that are found
        when 1% of the others are taken for such (Carlini et al. 2022: an attack that is sure of a few patients harms
        them, whatever it is on average).
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
    # The first of the others that may not be taken for a member any more; a member has to exceed it.
    allowed = math.floor(FALSE_POSITIVES * len(others) + 1e-9)
    limit = others[(above > allowed).long().argmax(dim=1)]
    members, order = members.sort()
    weights = member_weights[:, order]
    below = torch.cat([weights.new_zeros(len(weights), 1), weights.cumsum(dim=1)], dim=1)
    reached = torch.searchsorted(members, limit, right=True)
    return 1 - below.gather(1, reached[:, None])[:, 0] / below[:, -1]
