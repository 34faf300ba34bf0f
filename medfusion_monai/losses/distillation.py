"""The loss of the few-step phase: how far the tuned network is from where the steps of its teacher end."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.networks.described import Described, describable


@describable
class DistillationLoss(Described, nn.Module):
    """Mean squared distance between predictions and targets.

    Distances are those of the estimated clean latents divided by the noise level sigma, whatever the network predicts:
    for a velocity or ``v_prediction`` the distance of the predictions themselves.

    Args:
        schedule: of the noise, with its prediction type.
    """

    factors: Tensor
    not_described = ("schedule",)  # which describes itself

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        signal, sigma = (
            torch.tensor(values).clamp(min=1e-8) for values in (schedule.exact_signal, schedule.exact_sigma)
        )
        factors = {"epsilon": 1.0 / signal, "sample": 1.0 / sigma}.get(schedule.prediction_type, torch.ones_like(sigma))
        self.register_buffer("factors", factors, persistent=False)

    def forward(self, prediction: Tensor, target: Tensor, timesteps: Tensor | None = None) -> Tensor:
        """Compare predictions with targets, both (B, C, h, w), at timesteps (B,); return a scalar.

        Without timesteps, distances are those of the predictions.
        """
        squares = (prediction - target).square().flatten(1).mean(dim=1)
        if timesteps is not None:
            squares = squares * self.factors[timesteps].square()
        return squares.mean()
