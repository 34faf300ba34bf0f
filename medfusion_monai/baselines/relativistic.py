"""The relativistic pairing loss with gradient penalties on real and on generated images.

Huang et al. 2024 (arXiv:2501.05441), after Jolicoeur-Martineau 2019 (pairing), Mescheder et al. 2018 (R1) and Roth et
al. 2017 (R2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfusion_monai.networks.described import Described, describable
from medfusion_monai.runtime.values import is_number

PUBLISHED = {64: (2.0, 0.2), 256: (150.0, 15.0)}
"""First and last weight of the penalties by the side of the images."""


def penalty_range(image_size: Sequence[int]) -> list[float]:
    """Return the first and the last weight of the penalties for images of a size.

    As published at 64 and 256 pixels, in proportion to a power of the side in between and beyond.
    """
    small, large = PUBLISHED
    exponent = math.log(PUBLISHED[large][0] / PUBLISHED[small][0]) / math.log(large / small)
    side = math.sqrt(image_size[0] * image_size[1])
    return [float(f"{weight * (side / small) ** exponent:.3g}") for weight in PUBLISHED[small]]


def ramp(ends: Sequence[float], progress: float) -> float:
    """Go from the first to the second of two values along half a cosine, while ``progress`` goes from 0 to 1."""
    first, last = ends
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, progress))))


def check_ramp(least: float = 0.0, most: float = math.inf, **ends: Sequence[float]) -> None:
    """Raise a ValueError unless the values of these keys are pairs of numbers from ``least`` to ``most``."""
    for name, pair in ends.items():
        values = list(pair) if isinstance(pair, list | tuple) else []
        if len(values) != 2 or not all(is_number(value) and least <= value <= most for value in values):
            bound = f"of at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
            raise ValueError(f"{name} must be two numbers {bound}, the first and the last, received {pair!r}")


class GanLosses(NamedTuple):
    """The losses of a step.

    Attributes:
        discriminator: to be minimised by the discriminator's weights, penalties included.
        generator: to be minimised by the generator's weights.
        real_penalty: R1 before its weight.
        fake_penalty: R2 before its weight.
        fake_gradients: of ``generator`` by the generated images (B, C, H, W).
    """

    discriminator: Tensor
    generator: Tensor
    real_penalty: Tensor
    fake_penalty: Tensor
    fake_gradients: Tensor


@describable
class RelativisticLoss(Described, nn.Module):
    """Losses of pairs of a real and a generated image of the same class.

    With D the discriminator, x real and y generated, the discriminator minimises the mean over the pairs of
    softplus(D(y) - D(x)) + gamma / 2 * (|grad D(x)|^2 + |grad D(y)|^2), the generator that of softplus(D(x) - D(y)).

    Args:
        penalty: gamma at the beginning and from the end of the ramp on.

    Raises:
        ValueError: unless these are two numbers of at least 0.
    """

    def __init__(self, penalty: Sequence[float] = PUBLISHED[64]) -> None:
        super().__init__()
        check_ramp(gan_penalty=penalty)
        self.penalty = penalty

    def forward(self, images: Tensor, logits: Tensor, progress: float = 1.0) -> GanLosses:
        """Return the losses of pairs.

        Args:
            images: (2B, C, H, W), the real ones, then the generated ones in the same order of classes; they require
                gradients, and no gradient reaches the generator through them.
            logits: (2B,) of the images, each computed from its own image alone.
            progress: along the ramp, from 0 to 1.
        """
        real, fake = logits.chunk(2)
        gradients = torch.autograd.grad(logits.sum(), images, create_graph=True)[0]
        real_penalty, fake_penalty = squared_norms(gradients).chunk(2)
        weight = 0.5 * ramp(self.penalty, progress)
        adversarial = F.softplus(fake - real)
        # The penalty needs the gradients of D at the generated images; times the derivative of softplus they are all
        # that the generator needs, and spare it a second pass through the discriminator.
        slopes = -torch.sigmoid(real - fake).detach() / len(fake)
        fake_gradients = gradients.detach().chunk(2)[1] * slopes.reshape(-1, *[1] * (images.ndim - 1))
        return GanLosses(
            discriminator=(adversarial + weight * (real_penalty + fake_penalty)).mean(),
            generator=F.softplus(real - fake).detach().mean(),
            real_penalty=real_penalty.detach().mean(),
            fake_penalty=fake_penalty.detach().mean(),
            fake_gradients=fake_gradients,
        )


def squared_norms(gradients: Tensor) -> Tensor:
    """Return the squared norm (B,) of each gradient (B, ...)."""
    return gradients.flatten(1).square().sum(1)
