"""Samplers against the exact solution of the probability-flow equation, for data whose best prediction is known.

The data are a mixture of Gaussians, in one case a single one. Samplers take timesteps that are whole numbers, so the
exact solution is followed from the last timestep to timestep 0, where the samplers return their last estimate. The
schedules have 10,000 timesteps, so that eighty of them can be spaced as a formula wants, but for rounding.
"""

import itertools
import math

import pytest
import torch

from medfusion_monai.diffusion.ddim import ddim_sample
from medfusion_monai.diffusion.multistep import dpm_solver_sample, unipc_sample
from medfusion_monai.diffusion.schedule import NoiseSchedule

T = 10_000
BETAS = {"beta_start": 0.0002, "beta_end": 0.002}
SCHEDULES = {
    "epsilon": {"prediction_type": "epsilon", **BETAS},
    "sample": {"prediction_type": "sample", **BETAS},
    "v_prediction": {"prediction_type": "v_prediction", **BETAS},
    "cosine": {"schedule": "cosine"},
    "zero_terminal_snr": {"prediction_type": "v_prediction", "zero_terminal_snr": True, **BETAS},
    "flow": {"schedule": "flow", "prediction_type": "velocity"},
}


class Mixture:
    """A mixture of Gaussians in two dimensions, with the mean of its clean points given noisy ones."""

    def __init__(self, means, shares, deviation):
        self.means = torch.tensor(means, dtype=torch.float64)
        self.shares, self.variance = torch.tensor(shares, dtype=torch.float64), deviation**2

    def clean(self, noisy, signal, sigma):
        total = signal**2 * self.variance + sigma**2
        distances = noisy[:, None] - signal * self.means
        logits = self.shares.log() - distances.square().sum(-1) / (2 * total)
        means = self.means + signal * self.variance / total * distances
        return (logits.softmax(1)[..., None] * means).sum(1)

    def denoiser(self, schedule):
        def denoise(latents, timesteps):
            signal, sigma = schedule.exact_signal[int(timesteps[0])], schedule.exact_sigma[int(timesteps[0])]
            noisy = latents.flatten(1)
            clean = self.clean(noisy, signal, sigma)
            noise = (noisy - signal * clean) / sigma
            predictions = {"epsilon": noise, "sample": clean, "velocity": noise - clean}
            predictions["v_prediction"] = signal * noise - sigma * clean
            return predictions[schedule.prediction_type][:, :, None, None]

        return denoise


GAUSSIAN = Mixture([[0.7, -0.4]], [1.0], 0.5)
THREE = Mixture([[1.5, 0.0], [-1.0, 1.0], [-0.5, -1.4]], [0.5, 0.3, 0.2], 0.4)


def make_schedule(name):
    return NoiseSchedule(T, **SCHEDULES[name])


def start(count=64):
    return torch.randn(count, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def exact_gaussian(schedule, latents):
    """Return the end of the Gaussian's flow: a point keeps its distance from the mean in standard deviations."""
    (mean,), variance = GAUSSIAN.means, GAUSSIAN.variance

    def moments(t):
        signal, sigma = schedule.exact_signal[t], schedule.exact_sigma[t]
        return signal * mean, math.sqrt(signal**2 * variance + sigma**2)

    (first_mean, first_deviation), (mean_there, deviation) = moments(-1), moments(0)
    noisy = mean_there + deviation / first_deviation * (latents.flatten(1) - first_mean)
    return GAUSSIAN.clean(noisy, schedule.exact_signal[0], schedule.exact_sigma[0])[:, :, None, None]


def exact_mixture(schedule, latents, data=THREE, steps=300):
    """Follow d(x / sigma) / d(signal / sigma) = clean by Runge and Kutta's fourth order, with no timesteps at all."""
    first, last = (schedule.exact_signal[t] / schedule.exact_sigma[t] for t in (-1, 0))

    def path(u):
        if first > 0:
            ratio = first ** (1 - u) * last**u
            return ratio, ratio * math.log(last / first)
        return last * u**4, 4 * last * u**3

    def scales(ratio):
        sigma = 1 / math.hypot(1, ratio) if schedule.variance_preserving else 1 / (1 + ratio)
        return ratio * sigma, sigma

    def slope(u, scaled):
        ratio, derivative = path(u)
        signal, sigma = scales(ratio)
        return derivative * data.clean(sigma * scaled, signal, sigma)

    scaled, h = latents.flatten(1) / schedule.exact_sigma[-1], 1 / steps
    for step in range(steps):
        u = step * h
        k1 = slope(u, scaled)
        k2 = slope(u + h / 2, scaled + h / 2 * k1)
        k3 = slope(u + h / 2, scaled + h / 2 * k2)
        k4 = slope(u + h, scaled + h * k3)
        scaled = scaled + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    signal, sigma = scales(last)
    return data.clean(sigma * scaled, signal, sigma)[:, :, None, None]


def errors(sample, exact, counts):
    return [(sample(count) - exact).square().mean().sqrt().item() for count in counts]


def order_of(values, counts):
    """Slope of the logarithm of errors over that of the counts, from the first to the last."""
    assert all(a > b for a, b in itertools.pairwise(values)), values
    return math.log(values[0] / values[-1]) / math.log(counts[-1] / counts[0])


def test_two_references_agree_where_both_are_known():
    for name in ("epsilon", "flow"):
        schedule, latents = make_schedule(name), start()
        expected = exact_gaussian(schedule, latents)
        assert (exact_mixture(schedule, latents, GAUSSIAN) - expected).abs().max() < 1e-6


@pytest.mark.parametrize("sample", [dpm_solver_sample, unipc_sample])
@pytest.mark.parametrize("name", list(SCHEDULES))
def test_error_of_multistep_solvers_on_a_gaussian_falls_with_second_order(name, sample):
    schedule, latents, counts = make_schedule(name), start(), [20, 40, 80]
    denoiser = GAUSSIAN.denoiser(schedule)
    found = errors(
        lambda count: sample(denoiser, latents, schedule, count, "logsnr"),
        exact_gaussian(schedule, latents),
        counts,
    )
    assert order_of(found, counts) >= 1.8
    assert found[-1] < 2e-3


@pytest.mark.parametrize("sample", [dpm_solver_sample, unipc_sample])
@pytest.mark.parametrize("name", list(SCHEDULES))
def test_error_of_multistep_solvers_on_a_mixture_falls_with_second_order(name, sample):
    schedule, latents, counts = make_schedule(name), start(), [20, 40, 80, 160]
    denoiser = THREE.denoiser(schedule)
    found = errors(
        lambda count: sample(denoiser, latents, schedule, count, "logsnr"),
        exact_mixture(schedule, latents),
        counts,
    )
    assert order_of(found, counts) >= 1.8
    assert found[-1] < 2e-3


@pytest.mark.parametrize("name", ["epsilon", "zero_terminal_snr", "flow"])
@pytest.mark.parametrize("order_one", ["ddim", "dpm_solver"])
def test_error_of_ddim_falls_with_first_order(name, order_one):
    schedule, latents, counts = make_schedule(name), start(), [20, 40, 80, 160]
    denoiser, spacing = THREE.denoiser(schedule), "logsnr"

    def sample(count):
        if order_one == "ddim":
            return ddim_sample(denoiser, latents, schedule, count, 0.0, spacing=spacing)
        return dpm_solver_sample(denoiser, latents, schedule, count, spacing, order=1)

    assert 0.8 <= order_of(errors(sample, exact_mixture(schedule, latents), counts), counts) <= 1.25
