"""A small image classifier that tests whether classes can be distinguished: trained in seconds, from one seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfusion_monai.runtime.seeds import derive_seed

SIZES = (32, 256)
"""Smallest and largest working size; the values below were chosen at 64."""
MAX_SHIFT = 3
"""Pixels of the working size by which the images of a step are shifted at most, up or down and sideways."""
LEARNING_RATE = 3e-3
"""Peak of the cycle."""
WEIGHT_DECAY = 1e-2
"""Of AdamW."""

_GRID = 4  # rows and columns of the averaged last map, which keep the position of a finding


class LabelledImages(NamedTuple):
    """Images and their classes.

    Attributes:
        images: (N, C, H, W) in [0, 1], float32.
        labels: (N,), integers from 0.
    """

    images: Tensor
    labels: Tensor


class Classifier(nn.Module):
    """Four strided convolutions and a linear layer on a coarse map; 27 thousand weights for two classes.

    Args:
        channels: image channels.
        num_classes: number of classes.
        size: images of any size are first averaged to (size, size).
        widths: of the convolutions.
    """

    def __init__(
        self, channels: int, num_classes: int, size: int = 64, widths: Sequence[int] = (8, 16, 32, 64)
    ) -> None:
        super().__init__()
        self.size = size
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))
        self.features = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in pairwise((channels, *widths))
            ),
            nn.AdaptiveAvgPool2d(_GRID),
        )
        self.head = nn.Linear(widths[-1] * _GRID**2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, num_classes) of images (B, C, H, W) in [0, 1]."""
        images = F.adaptive_avg_pool2d(images, self.size)
        return self.head(self.features((images - self.mean) / self.std).flatten(1))


def labelled_images(pairs: Iterable[tuple[Tensor, int]], size: int = 64) -> LabelledImages:
    """Collect images and classes pair by pair, at the working size of the classifier.

    All are kept in memory: a gigabyte holds 20,000 RGB or 60,000 gray images of 64x64.

    Args:
        pairs: images (C, H, W), float in [0, 1] or uint8, of any size, and labels; a map-style dataset works too.
        size: each image is averaged to (size, size).

    Raises:
        ValueError: for no pairs, an invalid image, a missing label, or a mixture of gray and RGB.
    """
    check_size(size)
    images: list[Tensor] = []
    labels: list[int] = []
    for number, (image, label) in enumerate(pairs):
        if label is None:
            raise ValueError(f"image {number} has no class: a classifier needs a class for each image")
        if images and len(image) != len(images[0]):
            raise ValueError(
                f"image {number} has {len(image)} channels, those before it {len(images[0])}: use all gray or all RGB"
            )
        images.append(_unit(image[None], f"image {number}", size)[0])
        labels.append(int(label))
    if not images:
        raise ValueError("no images to classify")
    return LabelledImages(torch.stack(images), torch.tensor(labels))


def train_classifier(
    data: LabelledImages,
    num_classes: int,
    seed: int = 0,
    steps: int = 300,
    batch_size: int = 64,
    size: int = 64,
    flip: bool = False,
    device: torch.device | str = "cpu",
) -> Classifier:
    """Train a classifier, reproducibly for the same seed, data and machine.

    Every class is drawn equally often, however many images it has. AdamW, one cycle of the learning rate.

    Args:
        data: the training images, of any size; ``labelled_images`` reduces sets larger than memory.
        num_classes: number of classes, each with images.
        seed: of the weights and all random choices.
        steps: batches.
        batch_size: images per step.
        size: height and width that images are averaged to.
        flip: mirror half of the images left to right; for tissue, not for chests or eyes.
        device: where to train.

    Raises:
        ValueError: for fewer than two classes, a class without images, a label without a class, or a setting out of
            range.
    """
    check_size(size)
    counts = class_counts(data, num_classes)
    if num_classes < 2 or 0 in counts:
        raise ValueError(f"images of the {num_classes} classes are {counts}: give two or more classes, none empty")
    if steps < 2 or batch_size < num_classes:
        raise ValueError(
            f"steps={steps}, batch_size={batch_size}: use at least 2 steps and a batch of at least one image per class"
        )
    images = _unit(data.images, "images", size)
    generator = torch.Generator().manual_seed(derive_seed("classifier", seed))
    network = _new_classifier(images, num_classes, size, generator).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    by_class = data.labels.argsort(stable=True)
    for step in range(steps):
        labels = (torch.arange(batch_size) + step * batch_size) % num_classes
        chosen = by_class[_draw(labels, counts, generator)]
        batch = _augment(images[chosen].to(device), flip, generator)
        loss = F.cross_entropy(network(batch), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def scores(classifier: Classifier, images: Tensor, chunk: int = 256) -> Tensor:
    """Return the probability of each class, (N, classes) in float64, for images (N, C, H, W) in [0, 1] of any size."""
    device = next(classifier.parameters()).device
    parts = [classifier(_unit(part, "images", classifier.size).to(device)) for part in images.split(chunk)]
    return torch.cat(parts).double().softmax(dim=1).cpu()


def class_counts(data: LabelledImages, num_classes: int) -> list[int]:
    """Count the images of each class.

    Raises:
        ValueError: if there is not one label per image, or a label is out of range.
    """
    images, labels = data
    if images.ndim != 4 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"images must be (N, C, H, W) and labels (N,), received {tuple(images.shape)} and {tuple(labels.shape)}"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels lie in {int(labels.min())}..{int(labels.max())}, the {num_classes} classes are numbered from 0 to "
            f"{num_classes - 1}"
        )
    return torch.bincount(labels, minlength=num_classes).tolist()


def check_size(size: int) -> None:
    """Raise a ValueError if images cannot be classified at this working size."""
    if not SIZES[0] <= size <= SIZES[1]:
        raise ValueError(f"size={size}: use {SIZES[0]} to {SIZES[1]} pixels")


def _unit(images: Tensor, name: str, size: int) -> Tensor:
    """Average images (B, C, H, W) to (B, C, size, size); bytes become [0, 1]."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"{name}: channels, height and width are {tuple(images.shape[1:])}: use gray (1 channel) or RGB (3)"
        )
    images = images / 255.0 if images.dtype == torch.uint8 else images.float()
    lowest, highest = (float(value) for value in images.aminmax())
    if not (lowest >= 0 and highest <= 1):
        raise ValueError(f"{name}: values lie in [{lowest:.3g}, {highest:.3g}]: scale them to [0, 1]")
    return F.adaptive_avg_pool2d(images, size)


def _new_classifier(images: Tensor, num_classes: int, size: int, generator: torch.Generator) -> Classifier:
    """Make a classifier with random weights that normalizes the training images to zero mean and unit variance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        network = Classifier(images.shape[1], num_classes, size)
    std, mean = torch.std_mean(images, dim=(0, 2, 3), correction=0)
    network.mean.copy_(mean[:, None, None])
    network.std.copy_(std.clamp_min(1e-3)[:, None, None])
    return network


def _draw(labels: Tensor, counts: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw an index per label into images ordered by class, uniformly among the images of the class."""
    sizes = torch.tensor(counts)
    starts = sizes.cumsum(0) - sizes
    within = torch.rand(len(labels), dtype=torch.float64, generator=generator) * sizes[labels]
    return starts[labels] + within.long()


def _augment(images: Tensor, flip: bool, generator: torch.Generator) -> Tensor:
    """Shift images (B, C, H, W) by the same random offset, repeating the edge; mirror half of them if ``flip``."""
    down, right = torch.randint(2 * MAX_SHIFT + 1, (2,), generator=generator).tolist()
    height, width = images.shape[-2:]
    moved = F.pad(images, (MAX_SHIFT,) * 4, mode="replicate")[..., down : down + height, right : right + width]
    if not flip:
        return moved
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored.to(images.device), moved.flip(-1), moved)
