"""The loss of phase two: how far predictions are from their targets, optionally weighted by timestep."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.networks.described import Described, describable

Distance = Literal["l1", "l2"]
Weighting = Literal["none", "min_snr"]


@describable
class DiffusionLoss(Described, nn.Module):
    """Mean distance between predictions and targets; by default PyTorch's ``L1Loss``, as published.

    ``min_snr`` weights each sample by its timestep's signal-to-noise ratio clipped at ``gamma``, so that timesteps
    with little noise do not outweigh the others (Hang et al. 2023): min(SNR, gamma) times 1 / SNR for
    ``epsilon``, 1 / (SNR + 1) for ``v_prediction``, 1 for ``sample``. The paper uses ``l2``.

    Args:
        schedule: the schedule by which noise is added, with its prediction type.
        loss: ``l1`` or ``l2`` (mean squared error).
        weighting: ``none`` or ``min_snr``.
        gamma: upper limit of the ratio; 5 as in the paper.

    Raises:
        ValueError: for an unknown loss or weighting, a gamma that is not positive, or ``min_snr`` with a schedule
            for which it is undefined (``flow``) or gives no weight to the timestep where sampling starts
            (``zero_terminal_snr``).
    """

    timestep_weights: Tensor
    not_described = ("schedule",)  # which describes itself

    def __init__(
        self, schedule: NoiseSchedule, loss: Distance = "l1", weighting: Weighting = "none", gamma: float = 5.0
    ) -> None:
        super().__init__()
        if loss not in get_args(Distance):
            raise ValueError(f"loss must be one of {get_args(Distance)}, received {loss!r}")
        if weighting not in get_args(Weighting):
            raise ValueError(f"weighting must be one of {get_args(Weighting)}, received {weighting!r}")
        self.loss, self.weighting = loss, weighting
        self.distance = {"l1": F.l1_loss, "l2": F.mse_loss}[loss]
        if weighting == "min_snr":
            self.register_buffer("timestep_weights", _min_snr_weights(schedule, gamma), persistent=False)

    def forward(self, prediction: Tensor, target: Tensor, timesteps: Tensor | None = None) -> Tensor:
        """Compare predictions with targets, both (B, C, h, w).

        Args:
            prediction: of the network.
            target: of ``NoiseSchedule.target``.
            timesteps: (B,) integers, for the weights; without them all samples have weight 1.

        Returns:
            A scalar, the mean over all values.
        """
        if self.weighting == "none" or timesteps is None:
            return self.distance(prediction, target)
        distances = self.distance(prediction, target, reduction="none").flatten(1).mean(dim=1)
        return (self.timestep_weights.to(timesteps.device)[timesteps] * distances).mean()


def _min_snr_weights(schedule: NoiseSchedule, gamma: float) -> Tensor:
    if isinstance(gamma, bool) or not isinstance(gamma, int | float) or not 0.0 < gamma < float("inf"):
        raise ValueError(f"gamma must be a positive number, received {gamma!r}")
    if not schedule.variance_preserving or schedule.zero_terminal_snr:
        raise ValueError(
            "weighting 'min_snr' requires a variance-preserving schedule with some signal left at the last timestep: "
            "with schedule 'flow' or zero_terminal_snr use weighting 'none'"
        )
    alphas = torch.tensor(schedule.exact_alphas_cumprod, dtype=torch.float64)
    ratio = alphas / (1.0 - alphas)
    divisor = {"epsilon": ratio, "v_prediction": ratio + 1.0, "sample": ratio.new_ones(())}
    return (ratio.clamp(max=gamma) / divisor[schedule.prediction_type]).float()
