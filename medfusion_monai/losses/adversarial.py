"""The adversarial phase: patch discriminators per resolution, hinge loss, adaptive weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfusion_monai.networks.autoencoder import AutoencoderOutput
from medfusion_monai.runtime.distributed import average
from medfusion_monai.runtime.dtype import full_precision
from medfusion_monai.runtime.values import check_optional_counts


class AdversarialLoss(nn.Module):
    """Hinge loss of one discriminator per resolution (Lim and Ye 2017), balanced against the reconstruction loss.

    Args:
        discriminators: one for the full resolution, and one for the half resolution if that has an output.
        start_step: iterations of the autoencoder before the discriminators take part, published 50,000; None for never.
        weight: factor on the adaptive weight.
    """

    def __init__(
        self, discriminators: Sequence[nn.Module], start_step: int | None = 50_000, weight: float = 1.0
    ) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(discriminators)
        check_optional_counts(0, start_step=start_step)
        self.start_step = start_step
        self.weight = weight

    def active(self, iteration: int) -> bool:
        """Return whether the discriminators take part in an iteration, counted from 1."""
        return self.start_step is not None and iteration > self.start_step

    def generator_loss(
        self, output: AutoencoderOutput, reconstruction_loss: Tensor, last_layer: Tensor, scale: float = 1.0
    ) -> dict[str, Tensor]:
        """Return the autoencoder's terms: ``adversarial``, weighted, and ``adversarial_weight`` for the log.

        The weight is the ratio of gradient norms of the two losses at the last decoder layer, between 0 and 1e4
        (Esser et al. 2021, equation 7), where the reconstruction loss is summed over pixels. Gradients are
        averaged over all processes.

        Args:
            output: of the autoencoder.
            reconstruction_loss: scalar.
            last_layer: weight of the last decoder layer.
            scale: divisor of the reconstruction loss after it was summed over pixels; the adversarial loss is divided
                by it too, which keeps the balance of the sums.
        """
        loss = torch.stack([-full_precision(judge(fake)).mean() for judge, fake in self._pairs(output)]).sum()
        norms = [
            average(torch.autograd.grad(part, last_layer, retain_graph=True)[0]).norm()
            for part in (reconstruction_loss, loss)
        ]
        ratio = scale * norms[0] / (norms[1] + 1.0e-4)
        weight = self.weight * ratio.clamp(0.0, 1.0e4).detach() / scale
        return {"adversarial": weight * loss, "adversarial_weight": weight}

    def discriminator_loss(self, output: AutoencoderOutput, image: Tensor) -> Tensor:
        """Hinge loss of the discriminators on reconstructions and on images (B, C, H, W) in [-1, 1]."""
        losses = []
        for judge, fake in self._pairs(output):
            real = F.interpolate(image, size=fake.shape[-2:], mode="nearest-exact")
            losses.append(hinge(full_precision(judge(real)), full_precision(judge(fake.detach()))))
        return torch.stack(losses).sum()

    def _pairs(self, output: AutoencoderOutput) -> list[tuple[nn.Module, Tensor]]:
        fakes = [fake for fake in (output.reconstruction, output.reconstruction_low) if fake is not None]
        return list(zip(self.discriminators, fakes, strict=False))  # the second is unused without deep supervision


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Mean hinge loss of logits of real and of fake patches: 1 where both are 0, 0 beyond the margin."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())
