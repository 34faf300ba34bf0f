"""What some arms add to the UNet or to its loss; in the study alone, unless one of them wins."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfusion_monai.losses.denoising import DiffusionLoss
from medfusion_monai.networks.blocks import ResidualBlock
from medfusion_monai.networks.unet import UNet
from medfusion_monai.runtime.seeds import derive_seed

HIDDEN = 512


class ContrastiveLoss(nn.Module):
    """Contrastive flow matching (arXiv 2506.05350): away from the targets of another class.

    The loss of each sample, less ``weight`` times the distance of its prediction to the target of the next sample in
    the batch with another label. A sample whose label was dropped, or without such a partner, has the plain loss.

    Args:
        loss: of predictions and targets.
        weight: lambda of the paper.
        prediction_type: of the schedule.

    Raises:
        ValueError: unless ``velocity`` is predicted, whose target does not depend on the timestep: the target of
            another sample is then one at this sample's timestep too.
    """

    def __init__(self, loss: DiffusionLoss, weight: float, prediction_type: str = "velocity") -> None:
        super().__init__()
        if prediction_type != "velocity":
            raise ValueError(f"a contrastive loss needs prediction_type velocity, received {prediction_type!r}")
        self.loss, self.weight = loss, weight

    def forward(self, prediction: Tensor, target: Tensor, timesteps: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
        """Return the mean loss.

        Args:
            prediction: (B, C, h, w).
            target: (B, C, h, w).
            timesteps: (B,).
            labels: (B,) of the images, dropped or not.
            kept: (B,), whether the network saw the label.
        """
        plain = self.loss(prediction, target, timesteps)
        other = partners(labels)
        rows = (kept & (other >= 0)).nonzero()[:, 0]
        if not len(rows):
            return plain
        away = self.loss(prediction[rows], target[other[rows]], timesteps[rows])
        return plain - self.weight * (len(rows) / len(labels)) * away


def partners(labels: Tensor) -> Tensor:
    """Return for each sample the index of the next one in the batch, from its start again, with another label.

    Batches have a random order, so this is a random sample of the other classes; -1 where all labels are equal.
    """
    count = len(labels)
    found = torch.full((count,), -1)
    for step in range(count - 1, 0, -1):
        other = (torch.arange(count) + step) % count
        found = torch.where(labels[other] != labels, other, found)
    return found


class AlignmentHead(nn.Module):
    """Maps the UNet's middle to features of the clean image (REPA, arXiv 2410.06940, at the middle of a UNet).

    Two 1x1 convolutions with SiLU between them, trained with the UNet and thrown away after training.

    Args:
        channels: of the middle.
        features: of the network of images.
    """

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, HIDDEN, 1), nn.SiLU(), nn.Conv2d(HIDDEN, features, 1))

    def forward(self, middle: Tensor) -> Tensor:
        """Map (B, channels, h, w) to (B, features, h, w)."""
        return self.layers(middle)


def alignment_loss(projected: Tensor, features: Tensor) -> Tensor:
    """Return 1 less the mean cosine similarity over positions: 0 for equal directions; both (B, D, h, w)."""
    return 1.0 - F.cosine_similarity(projected, features, dim=1).mean()


class Middle:
    """Keeps what the middle of a UNet computed last.

    Args:
        network: the UNet.
    """

    def __init__(self, network: UNet) -> None:
        self.output: Tensor
        network.middle[-1].register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.output = output


class Dropout:
    """Dropout before the second convolution of every residual block, in training alone.

    It has no weights, so the network keeps the names of its own. The masks are drawn from a seed per step: a training
    that was stopped goes on with those that it would have had.

    It stays out of ``UNet``, which draws nothing: its trainings resume without random states, and its gradient
    checkpointing repeats a forward pass without them, with other masks.

    Args:
        network: the UNet.
        probability: of a value to be 0.
        seed: of the training.
    """

    def __init__(self, network: nn.Module, probability: float, seed: int) -> None:
        self.probability, self.seed = probability, seed
        self.generator = torch.Generator()
        for block in network.modules():
            if isinstance(block, ResidualBlock):
                block.second.conv.register_forward_pre_hook(self._drop)

    def start(self, step: int) -> None:
        """Seed the masks of a step."""
        self.generator.manual_seed(derive_seed("dropout", self.seed, step))

    def _drop(self, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        if not module.training:
            return None
        kept = torch.rand(inputs[0].shape, generator=self.generator) >= self.probability
        return (inputs[0] * kept / (1.0 - self.probability),)
