"""Pictures of the progress of a training: reconstructions, and samples per class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from PIL import Image
from torch import Tensor, nn
from torchvision.utils import make_grid

from medfusion_monai.losses.reconstruction import to_unit
from medfusion_monai.runtime.seeds import derive_seed


class ImageGrid:
    """Writes a grid of images as PNG, and to TensorBoard, at the end of epochs.

    Args:
        draw: returns rows of images, each (N, C, H, W) in [0, 1]; see ``reconstruction_rows`` and ``sample_rows``.
        path: folder of the pictures, named ``{name}_{step}.png``.
        name: what the picture shows.
        interval: epochs between pictures.
        writer: a TensorBoard ``SummaryWriter``, or None.
    """

    def __init__(
        self,
        draw: Callable[[], Sequence[Tensor]],
        path: str | Path,
        name: str,
        interval: int = 1,
        writer: Any | None = None,
    ) -> None:
        self.draw, self.path, self.name, self.interval, self.writer = draw, Path(path), name, interval, writer

    def attach(self, engine: Engine) -> None:
        """Draw at the end of epochs of a trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)

    def __call__(self, engine: Engine) -> None:
        """Draw and write."""
        step = engine.state.iteration
        grid = grid_of_rows(self.draw())
        save_picture(grid, self.path / f"{self.name}_{step:07d}.png")
        if self.writer is not None:
            self.writer.add_image(self.name, grid, step)


def grid_of_rows(rows: Sequence[Tensor], padding: int = 2) -> Tensor:
    """Combine rows of images, each (N, C, H, W) in [0, 1], into one picture (3, H', W')."""
    width = max(len(row) for row in rows)
    filled = [torch.cat([row, row.new_ones(width - len(row), *row.shape[1:])]) for row in rows]
    return make_grid(torch.cat(filled).float().cpu(), nrow=width, padding=padding, pad_value=1.0)


def save_picture(picture: Tensor, path: str | Path) -> None:
    """Write a picture (3, H, W) in [0, 1] as 8-bit PNG, values rounded."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    to_picture(picture).save(path)


def to_picture(grid: Tensor) -> Image.Image:
    """Turn a grid (3, H, W) in [0, 1] into an 8-bit picture, values rounded."""
    values = np.rint(grid.clamp(0, 1).numpy() * 255).astype(np.uint8)
    return Image.fromarray(values.transpose(1, 2, 0))


@torch.no_grad()
def reconstruction_rows(autoencoder: Any, images: Tensor) -> list[Tensor]:
    """Return originals (N, C, H, W) in [0, 1], reconstructions, and their absolute differences times four."""
    device = next(autoencoder.parameters()).device
    with evaluation_mode(autoencoder):
        reconstructions = to_unit(autoencoder.reconstruct(images.to(device) * 2.0 - 1.0)).cpu()
    return [images, reconstructions, (4.0 * (reconstructions - images).abs()).clamp(max=1.0)]


def sample_rows(
    network: nn.Module, inferer: Any, num_classes: int, num_samples: int = 8, seed: int = 0
) -> list[Tensor]:
    """Sample one row of images (N, C, H, W) in [0, 1] per class, always with the same seeds.

    Args:
        network: that is sampled.
        inferer: its sampler, of a diffusion model or a GAN.
        num_classes: number of rows.
        num_samples: images per row.
        seed: of the images.
    """
    device = next(network.parameters()).device
    seeds = [derive_seed("grid", seed, number) for number in range(num_samples)]
    labels = [torch.full((num_samples,), label, device=device) for label in range(num_classes)]
    with evaluation_mode(network):
        return [inferer(class_labels, network, seeds=seeds).cpu() for class_labels in labels]


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, then restore the mode of each of its modules."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
