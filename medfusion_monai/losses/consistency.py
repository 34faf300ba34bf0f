"""The loss of the few-step phase: how far two estimates of the same clean latents are from each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.networks.described import Described, describable
from medfusion_monai.runtime.values import check_numbers


@describable
class ConsistencyLoss(Described, nn.Module):
    """Mean pseudo-Huber distance between predictions and targets of samples (Song and Dhariwal 2024, equation 7).

    Distances are those of the estimated clean latents divided by the noise level sigma, whatever the network predicts:
    for a velocity the distance of the predictions themselves. They are root mean squares over a sample, so that its
    gradient has about the same length however far it is from its target.

    Args:
        schedule: of the noise, with its prediction type.
        smoothing: distance below which the loss is quadratic.

    Raises:
        ValueError: for a smoothing that is not positive.
    """

    factors: Tensor
    not_described = ("schedule",)  # which describes itself

    def __init__(self, schedule: NoiseSchedule, smoothing: float = 0.03) -> None:
        super().__init__()
        check_numbers(above=True, smoothing=smoothing)
        self.smoothing = smoothing
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
        return ((squares + self.smoothing**2).sqrt() - self.smoothing).mean()
