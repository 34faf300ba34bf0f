"""The noise schedule: how much of the clean latents is left at each timestep, and what the UNet predicts."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Schedule = Literal["linear", "scaled_linear", "cosine"]
PredictionType = Literal["epsilon", "sample", "v_prediction"]


class NoiseSchedule(nn.Module):
    """Variance-preserving schedule; defaults as published. Holds no weights.

    Args:
        num_train_timesteps: number of timesteps T; timesteps are 0 to T - 1.
        schedule: ``linear`` (Ho et al. 2020), ``scaled_linear`` (Rombach et al. 2022: linear in the square root)
            or ``cosine`` (Nichol and Dhariwal 2021, equation 17; ignores the betas).
        beta_start: first beta.
        beta_end: last beta.
        prediction_type: what the network estimates: the noise, the clean sample, or the velocity
            (Salimans and Ho 2022, appendix D).

    Raises:
        ValueError: for an unknown schedule or prediction type, or betas outside 0 < start <= end < 1.
    """

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        schedule: Schedule = "scaled_linear",
        beta_start: float = 0.002,
        beta_end: float = 0.02,
        prediction_type: PredictionType = "epsilon",
    ) -> None:
        super().__init__()
        if schedule not in get_args(Schedule):
            raise ValueError(f"schedule must be one of {get_args(Schedule)}, received {schedule!r}")
        if prediction_type not in get_args(PredictionType):
            raise ValueError(f"prediction_type must be one of {get_args(PredictionType)}, received {prediction_type!r}")
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"betas must satisfy 0 < beta_start <= beta_end < 1, received {beta_start}, {beta_end}")
        if num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps must be at least 1, received {num_train_timesteps}")
        self.num_train_timesteps = num_train_timesteps
        self.prediction_type: PredictionType = prediction_type
        betas = _betas(schedule, num_train_timesteps, beta_start, beta_end)
        alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
        self.exact_alphas_cumprod: list[float] = alphas_cumprod.tolist()  # float64 on the host, for samplers
        self.betas: Tensor
        self.alphas_cumprod: Tensor
        self.register_buffer("betas", betas.float(), persistent=False)
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Diffuse latents (B, C, h, w) to timesteps (B,) (Ho et al. 2020, equation 4)."""
        signal, sigma = self._scales(timesteps)
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Give what the network should predict, (B, C, h, w), for the schedule's prediction type."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return latents
        signal, sigma = self._scales(timesteps)
        return signal * noise - sigma * latents

    def clean_and_noise(self, prediction: Tensor, noisy_latents: Tensor, timestep: int) -> tuple[Tensor, Tensor]:
        """Turn a prediction at one timestep into estimates of the clean latents and of the noise."""
        alpha = self.exact_alphas_cumprod[timestep]
        signal, sigma = math.sqrt(alpha), math.sqrt(1.0 - alpha)
        if self.prediction_type == "epsilon":
            return (noisy_latents - sigma * prediction) / signal, prediction
        if self.prediction_type == "sample":
            return prediction, (noisy_latents - signal * prediction) / sigma
        return signal * noisy_latents - sigma * prediction, sigma * noisy_latents + signal * prediction

    def _scales(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        alphas = self.alphas_cumprod.to(timesteps.device)[timesteps][:, None, None, None]
        return alphas.sqrt(), (1.0 - alphas).sqrt()


def _betas(schedule: Schedule, steps: int, start: float, end: float) -> Tensor:
    if schedule == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    alphas_cumprod = torch.cos((time + 0.008) / 1.008 * math.pi / 2).square()
    return (1.0 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=0.999)
