"""Training of a head on features, or of the whole network, stopped by the tuning patients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helps.draws import Pool, counts_of
from helps.protocol import DROPOUT, HIDDEN, Recipe
from medfusion_monai.evaluation.metrics.label_steering import areas_under_curve
from medfusion_monai.runtime.seeds import derive_seed
from medfusion_monai.weights import efficientnet_lite

CHUNK = 256


class Head(nn.Module):
    """Two layers on features of zero mean and unit variance, both with dropout of their inputs.

    Args:
        features: (N, D) of the first images that it is trained on.
        seed: of its weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: Tensor, seed: int) -> None:
        super().__init__()
        std, mean = torch.std_mean(features, dim=0, correction=0)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std.clamp_min(1e-3))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("head", seed))
            self.layers = nn.Sequential(
                nn.Dropout(DROPOUT),
                nn.Linear(features.shape[1], HIDDEN),
                nn.ReLU(),
                nn.Dropout(DROPOUT),
                nn.Linear(HIDDEN, 2),
            )

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, 2) of features (B, D)."""
        return self.layers((features - self.mean) / self.std)


class WholeNetwork(nn.Module):
    """EfficientNet-Lite0 with weights of ImageNet and a new last layer, all of it trained.

    Args:
        seed: of the last layer.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        network = efficientnet_lite.load_efficientnet_lite().requires_grad_(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("whole network", seed))
            network.reset_classifier(2)
        self.network = network.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 2) of images (B, C, H, W) in [0, 1]."""
        images = images.expand(-1, 3, -1, -1) * 2 - 1
        return self.network(images.contiguous(memory_format=torch.channels_last))


class ImageFiles:
    """Images that are read when a network needs them.

    Args:
        files: their paths.
        load: reads a file as an image (C, H, W) in [0, 1].
    """

    def __init__(self, files: Sequence[str], load: Callable[[str], Tensor]) -> None:
        self.files, self.load = files, load

    def __getitem__(self, places: Tensor) -> Tensor:
        """Return images (B, C, H, W) at positions (B,)."""
        return torch.stack([self.load(self.files[place]) for place in places.tolist()])


def train(
    network: nn.Module,
    pool: Pool,
    chosen: Tensor,
    tuning: Tensor,
    recipe: Recipe,
    seed: int,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Train a network and leave it with the weights that were best on the tuning patients, those at the start included.

    Both classes are drawn equally often, each with replacement.

    Args:
        network: maps inputs of the pool to logits (B, 2).
        pool: of the images.
        chosen: positions of the training images.
        tuning: positions of the images that end the training.
        recipe: how it is trained.
        seed: of the draws.
        device: where.

    Returns:
        ``steps`` that were taken, ``best_step``, and ``tuning_auc`` after it.
    """
    network.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    torch.manual_seed(derive_seed("dropout", seed))
    batches = np.random.default_rng(derive_seed("batches", seed))
    by_class = [chosen[pool.labels[chosen] == label] for label in (0, 1)]
    half = recipe.batch_size // 2
    labels = torch.arange(2).repeat_interleave(half).to(device)
    best, best_step, kept, step = _tuning_auc(network, pool, tuning, device), 0, copy.deepcopy(network.state_dict()), 0
    while step < recipe.steps and step - best_step < recipe.patience * recipe.every:
        network.train()
        for _ in range(min(recipe.every, recipe.steps - step)):
            places = torch.cat([own[torch.from_numpy(batches.integers(len(own), size=half))] for own in by_class])
            loss = F.cross_entropy(network(pool.inputs[places].to(device)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        value = _tuning_auc(network, pool, tuning, device)
        if value > best:
            best, best_step, kept = value, step, copy.deepcopy(network.state_dict())
    network.load_state_dict(kept)
    network.eval()
    return {"images": counts_of(pool.labels[chosen]), "steps": step, "best_step": best_step, "tuning_auc": best}


@torch.no_grad()
def scores(network: nn.Module, pool: Pool, places: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Return how much more a network takes images for positive than for negative: logits (N,), float64."""
    network.eval()
    parts = [network(pool.inputs[part].to(device)).double().cpu() for part in places.split(CHUNK)]
    logits = torch.cat(parts)
    return logits[:, 1] - logits[:, 0]


def areas(values: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the AUC (R,) of scores (N,) in sets with weights (R, N)."""
    return areas_under_curve(torch.stack([-values, values], dim=1), labels, weights)


def area(values: Tensor, labels: Tensor) -> float:
    """Return the AUC of scores (N,)."""
    return float(areas(values, labels, torch.ones(1, len(labels), dtype=torch.float64)))


def _tuning_auc(network: nn.Module, pool: Pool, tuning: Tensor, device: torch.device | str) -> float:
    return area(scores(network, pool, tuning, device), pool.labels[tuning])
