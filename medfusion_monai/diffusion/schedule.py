"""The noise schedule: how much of the clean latents remains at each timestep, and what the UNet predicts."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from medfusion_monai.networks.described import Described, describable

Schedule = Literal["linear", "scaled_linear", "cosine", "flow"]
PredictionType = Literal["epsilon", "sample", "v_prediction", "velocity"]


@describable
class NoiseSchedule(Described, nn.Module):
    """Noisy latents are ``signal * latents + sigma * noise``; defaults as published. Has no weights.

    All schedules but ``flow`` preserve the variance: signal^2 + sigma^2 = 1.

    Attributes:
        exact_signal: factor of the clean latents at each timestep, float64 on the host, for samplers.
        exact_sigma: factor of the noise, likewise.
        exact_alphas_cumprod: squares of ``exact_signal``; the cumulative products of the alphas unless ``flow``.

    Args:
        num_train_timesteps: number of timesteps T; timesteps are 0 to T - 1.
        schedule: ``linear`` (Ho et al. 2020), ``scaled_linear`` (Rombach et al. 2022: linear in the square root),
            ``cosine`` (Nichol and Dhariwal 2021, equation 17; ignores the betas), or ``flow``: the straight path
            of flow matching and rectified flow (Lipman et al. 2023, example II with no noise left in the data;
            Liu et al. 2023), sigma = (t + 1) / T and signal = 1 - sigma; ignores the betas.
        beta_start: first beta.
        beta_end: last beta.
        prediction_type: what the network estimates: the noise, the clean sample, ``v_prediction`` (Salimans and Ho
            2022, appendix D: signal * noise - sigma * latents), or for ``flow`` and only there the ``velocity`` of
            the path, noise - latents.
        zero_terminal_snr: rescale the signal to exactly 0 at the last timestep, where sampling starts from pure noise
            (Lin et al. 2024, algorithm 1).

    Raises:
        ValueError: for an unknown schedule or prediction type, an invalid combination of both, or betas outside
            0 < start <= end < 1.
    """

    betas: Tensor
    alphas_cumprod: Tensor
    signal: Tensor
    sigma: Tensor

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        schedule: Schedule = "scaled_linear",
        beta_start: float = 0.002,
        beta_end: float = 0.02,
        prediction_type: PredictionType = "epsilon",
        zero_terminal_snr: bool = False,
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
        _check_combination(schedule, prediction_type, zero_terminal_snr, num_train_timesteps)
        self.num_train_timesteps = num_train_timesteps
        self.prediction_type: PredictionType = prediction_type
        self.zero_terminal_snr = zero_terminal_snr
        self.variance_preserving = schedule != "flow"
        alphas_cumprod, sigma = _alphas_and_sigma(schedule, num_train_timesteps, beta_start, beta_end)
        if zero_terminal_snr:
            alphas_cumprod = _without_last_signal(alphas_cumprod)
            sigma = (1.0 - alphas_cumprod).sqrt()
        signal = alphas_cumprod.sqrt()
        self.exact_signal: list[float] = signal.tolist()
        self.exact_sigma: list[float] = sigma.tolist()
        self.exact_alphas_cumprod: list[float] = alphas_cumprod.tolist()
        betas = 1.0 - alphas_cumprod / torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
        buffers = {"betas": betas, "alphas_cumprod": alphas_cumprod, "signal": signal, "sigma": sigma}
        for name, values in buffers.items():
            self.register_buffer(name, values.float(), persistent=False)

    def noise_to_signal(self, timestep: int) -> float:
        """Return sigma / signal, the noise level of the variance-exploding form; infinite where no signal is left.

        It does not depend on how a schedule scales its latents, so that one value means the same in all schedules.
        """
        signal, sigma = self.exact_signal[timestep], self.exact_sigma[timestep]
        return sigma / signal if signal > 0.0 else math.inf

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Diffuse latents (B, C, h, w) to timesteps (B,) (Ho et al. 2020, equation 4)."""
        signal, sigma = self._scales_at(timesteps)
        return signal * latents + sigma * noise

    def noise_in(self, noisy_latents: Tensor, latents: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noise with which ``add_noise`` makes noisy latents at timesteps (B,) of these clean ones."""
        signal, sigma = self._scales_at(timesteps)
        return (noisy_latents - signal * latents) / sigma

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the network should predict, (B, C, h, w), for the schedule's prediction type."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return latents
        if self.prediction_type == "velocity":
            return noise - latents
        signal, sigma = self._scales_at(timesteps)
        return signal * noise - sigma * latents

    def clean_and_noise(
        self, prediction: Tensor, noisy_latents: Tensor, timestep: int | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Convert a prediction, at one timestep or at (B,), to estimates of the clean latents and of the noise."""
        signal: float | Tensor
        sigma: float | Tensor
        if isinstance(timestep, Tensor):
            signal, sigma = self._scales_at(timestep)
        else:
            signal, sigma = self.exact_signal[timestep], self.exact_sigma[timestep]
        if self.prediction_type == "epsilon":
            return (noisy_latents - sigma * prediction) / signal, prediction
        if self.prediction_type == "sample":
            return prediction, (noisy_latents - signal * prediction) / sigma
        if self.prediction_type == "velocity":
            return noisy_latents - sigma * prediction, noisy_latents + signal * prediction
        return signal * noisy_latents - sigma * prediction, sigma * noisy_latents + signal * prediction

    def _scales_at(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        signal, sigma = (values.to(timesteps.device)[timesteps] for values in (self.signal, self.sigma))
        return signal[:, None, None, None], sigma[:, None, None, None]


def _check_combination(schedule: str, prediction_type: str, zero_terminal_snr: bool, timesteps: int) -> None:
    if (schedule == "flow") != (prediction_type == "velocity"):
        raise ValueError(
            "schedule 'flow' and prediction_type 'velocity' can only be used together, received schedule "
            f"{schedule!r} with prediction_type {prediction_type!r}"
        )
    if not isinstance(zero_terminal_snr, bool):
        raise ValueError(f"zero_terminal_snr must be true or false, received {zero_terminal_snr!r}")
    if zero_terminal_snr and (prediction_type not in ("v_prediction", "sample") or timesteps < 2):
        raise ValueError(
            "zero_terminal_snr needs prediction_type 'v_prediction' or 'sample', because noise does not determine the "
            f"latents where no signal is left, and two timesteps or more; received {prediction_type!r} and {timesteps}"
        )


def _alphas_and_sigma(schedule: Schedule, steps: int, start: float, end: float) -> tuple[Tensor, Tensor]:
    """Square of the signal, and sigma, at each timestep, in float64."""
    if schedule == "flow":
        sigma = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        return (1.0 - sigma).square(), sigma
    alphas_cumprod = torch.cumprod(1.0 - _betas(schedule, steps, start, end), dim=0)
    return alphas_cumprod, (1.0 - alphas_cumprod).sqrt()


def _without_last_signal(alphas_cumprod: Tensor) -> Tensor:
    signal = alphas_cumprod.sqrt()
    return ((signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))).square()


def _betas(schedule: Schedule, steps: int, start: float, end: float) -> Tensor:
    if schedule == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    alphas_cumprod = torch.cos((time + 0.008) / 1.008 * math.pi / 2).square()
    return (1.0 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=0.999)
