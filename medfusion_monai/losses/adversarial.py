"""The adversarial phase: patch discriminators per resolution, hinge loss, adaptive weight."""

from __future__ import annotations

from collections.abc import Sequence

import ignite.distributed as idist
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfusion_monai.networks.autoencoder import AutoencoderOutput
from medfusion_monai.networks.described import Described, describable
from medfusion_monai.runtime.distributed import average
from medfusion_monai.runtime.dtype import full_precision
from medfusion_monai.runtime.values import check_numbers, check_optional_counts


@describable
class AdversarialLoss(Described, nn.Module):
    """Hinge loss of one discriminator per resolution (Lim and Ye 2017), each balanced against its reconstruction loss.

    As published: the autoencoder's term is minus the sum of the patch logits over the batch. Its weight is the ratio of
    the gradient norms of the reconstruction loss and of that term, taken per resolution at the convolution that writes
    that resolution (Esser et al. 2021, equation 7).

    Args:
        discriminators: one for the full resolution, and one for the half resolution if that has an output.
        start_step: iterations of the autoencoder before the discriminators take part, published 50,000; None for never.
        weight: factor on the adaptive weights.
    """

    def __init__(
        self, discriminators: Sequence[nn.Module], start_step: int | None = 50_000, weight: float = 1.0
    ) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(discriminators)
        check_optional_counts(0, start_step=start_step)
        check_numbers(weight=weight)
        self.start_step = start_step
        self.weight = weight

    def active(self, iteration: int) -> bool:
        """Return whether the discriminators take part in an iteration, counted from 1."""
        return self.start_step is not None and iteration > self.start_step

    def generator_loss(
        self,
        output: AutoencoderOutput,
        reconstruction_losses: Sequence[Tensor],
        output_layers: Sequence[Tensor],
        scale: float = 1.0,
    ) -> dict[str, Tensor]:
        """Return the weighted terms of the autoencoder and their weights, those of the half resolution with ``_low``.

        Gradients are those of the batches of all processes together.

        Args:
            output: of the autoencoder.
            reconstruction_losses: a scalar per resolution, the full one first.
            output_layers: per resolution the weight of the convolution that writes it.
            scale: what the reconstruction losses were divided by after summing over pixels; the terms are divided by it
                too, so that the balance is that of the sums.

        Returns:
            Scalars: ``adversarial`` and ``adversarial_low``, to add to the loss; ``adversarial_weight`` and
            ``adversarial_weight_low``, for the log.
        """
        terms: dict[str, Tensor] = {}
        pairs = zip(("", "_low"), self._pairs(output), reconstruction_losses, output_layers, strict=False)
        for ending, (judge, fake), reconstruction, layer in pairs:
            loss = -full_precision(judge(fake)).sum() * idist.get_world_size()  # gradients are averaged over processes
            weight = self.weight * _balance(reconstruction * scale, loss, layer) / scale
            terms[f"adversarial{ending}"] = weight * loss
            terms[f"adversarial_weight{ending}"] = weight
        return terms

    def discriminator_loss(self, output: AutoencoderOutput, image: Tensor) -> Tensor:
        """Hinge loss of the discriminators on reconstructions and on images (B, C, H, W) in [-1, 1]."""
        losses = []
        for judge, fake in self._pairs(output):
            real = F.interpolate(image, size=fake.shape[-2:], mode="nearest-exact")
            losses.append(hinge(full_precision(judge(real)), full_precision(judge(fake.detach()))))
        return torch.stack(losses).sum()

    def _pairs(self, output: AutoencoderOutput) -> list[tuple[nn.Module, Tensor]]:
        fakes = [fake for fake in (output.reconstruction, output.reconstruction_low) if fake is not None]
        return list(zip(self.discriminators, fakes, strict=False))  # without deep supervision the second is not used


def _balance(reconstruction: Tensor, adversarial: Tensor, layer: Tensor) -> Tensor:
    """Return the ratio of the gradient norms of two losses at a layer, between 0 and 1e4."""
    norms = [
        average(torch.autograd.grad(loss, layer, retain_graph=True)[0]).norm() for loss in (reconstruction, adversarial)
    ]
    return (norms[0] / (norms[1] + 1.0e-4)).clamp(0.0, 1.0e4).detach()


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Mean hinge loss of logits of real and of fake patches: 1 where both are 0, 0 beyond the margin."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())
