import itertools
import math

import numpy as np
import pytest
import torch

from medfusion_monai.diffusion.ddim import ddim_coefficients, ddim_sample
from medfusion_monai.diffusion.guidance import guided_denoiser
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.diffusion.spacing import spaced_timesteps

DATA_VARIANCE = 0.01**2


def published_network(matrix):
    """Build the 'network' that the published sampler was recorded with; -1 stands for no label."""

    def network(x, timesteps, class_labels):
        mixed = torch.einsum("oc,bchw->bohw", matrix, x) * (0.5 + timesteps / 2000)[:, None, None, None]
        labels = class_labels[:, None, None, None]
        return mixed + torch.where(labels >= 0, 0.1 * (2.0 * labels - 1.0), 0.0)

    return network


@pytest.mark.parametrize("name", ["ddim_50_steps", "ddim_150_steps_guided"])
def test_published_sampler_is_reproduced(name, vectors, relative_error):
    tensors, case = vectors(name)
    denoiser = guided_denoiser(published_network(tensors["w"]), tensors["labels"], case["guidance"])
    noise = iter(tensors["ddim_noise"])
    clean = ddim_sample(denoiser, tensors["x_T"], NoiseSchedule(), case["steps"], 1.0, lambda: next(noise))
    assert relative_error(clean, tensors["x_0"]) < 1e-5
    assert next(noise, None) is None, "noise was left over"


@pytest.mark.parametrize("name", ["ddim_50_steps", "ddim_150_steps_guided"])
def test_published_timesteps_are_reproduced(name, vectors):
    tensors, case = vectors(name)
    assert sorted(spaced_timesteps(case["steps"])) == sorted(tensors["timesteps"].tolist())


def exact_denoiser(prediction_type="epsilon"):
    """Return the best prediction for Gaussian data: linear in the noisy latents."""
    alphas = NoiseSchedule().exact_alphas_cumprod

    def denoise(latents, timesteps):
        alpha = alphas[int(timesteps[0])]
        total = alpha * DATA_VARIANCE + 1 - alpha
        clean, noise = math.sqrt(alpha) * DATA_VARIANCE / total, math.sqrt(1 - alpha) / total
        factors = {"epsilon": noise, "sample": clean}
        factors["v_prediction"] = math.sqrt(alpha) * noise - math.sqrt(1 - alpha) * clean
        return factors[prediction_type] * latents

    return denoise


def deviation_by_recursion(steps, eta):
    """Follow the variance of the samples from step to step, with no sample drawn."""
    roots = np.linspace(math.sqrt(0.002), math.sqrt(0.02), 1000)
    alphas = np.cumprod(1.0 - roots**2)
    timesteps = np.linspace(0, 999, steps).astype(int)[::-1]
    variance = 1.0
    for now, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        alpha = alphas[now]
        noise = np.sqrt(1 - alpha) / (alpha * DATA_VARIANCE + 1 - alpha)
        clean = (1 - np.sqrt(1 - alpha) * noise) / np.sqrt(alpha)
        if following is None:
            return math.sqrt(clean**2 * variance)
        ahead = alphas[following]
        fresh = eta**2 * (1 - ahead) / (1 - alpha) * (1 - alpha / ahead)
        variance = (np.sqrt(ahead) * clean + np.sqrt(1 - ahead - fresh) * noise) ** 2 * variance + fresh
    raise AssertionError


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [5, 10, 25, 50, 150, 250, 750, 1000])
def test_gaussian_data_come_out_with_the_deviation_that_mathematics_says(steps, eta):
    source = torch.Generator().manual_seed(steps)
    latents = torch.randn(4096, 1, 4, 4, generator=source)

    def draw():
        return torch.randn(latents.shape, generator=source)

    deviation = ddim_sample(exact_denoiser(), latents, NoiseSchedule(), steps, eta, draw).std().item()
    assert deviation == pytest.approx(deviation_by_recursion(steps, eta), rel=0.015)
    if eta == 0.0:
        assert 0.0021 <= deviation <= 0.0022


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_perfect_predictors_of_each_type_give_the_same_latents(prediction_type, eta):
    def run(kind):
        source = torch.Generator().manual_seed(1)

        def draw():
            return torch.randn(3, 2, 4, 4, generator=source, dtype=torch.float64)

        return ddim_sample(exact_denoiser(kind), draw(), NoiseSchedule(prediction_type=kind), 25, eta, draw)

    torch.testing.assert_close(run(prediction_type), run("epsilon"), rtol=1e-8, atol=1e-12)


def test_known_clean_latents_are_found_again():
    schedule, clean = NoiseSchedule(), torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def denoise(latents, timesteps):
        alpha = schedule.alphas_cumprod[timesteps][:, None, None, None]
        return (latents - alpha.sqrt() * clean) / (1 - alpha).sqrt()

    torch.testing.assert_close(ddim_sample(denoise, torch.randn(2, 3, 4, 4), schedule, 10), clean, rtol=0, atol=1e-4)


def test_network_sees_the_timesteps_that_are_spaced():
    seen = []

    def denoise(latents, timesteps):
        seen.append(timesteps.tolist())
        return latents

    ddim_sample(denoise, torch.ones(2, 1, 1, 1), NoiseSchedule(), 7)
    assert seen == [[timestep] * 2 for timestep in spaced_timesteps(7)]


def test_deterministic_sampler_draws_no_noise():
    def fail():
        raise AssertionError("noise was drawn")

    ddim_sample(exact_denoiser(), torch.ones(1, 1, 1, 1), NoiseSchedule(), 10, 0.0, fail)


def test_step_keeps_unit_variance_whatever_the_eta():
    for eta in (0.0, 0.3, 1.0):
        clean, noise, sigma = ddim_coefficients(0.2, 0.7, eta)
        assert clean**2 + noise**2 + sigma**2 == pytest.approx(1.0)


def test_timesteps_fall_strictly_from_the_last_to_zero_for_every_number_of_steps():
    for steps in range(2, 1001):
        timesteps = spaced_timesteps(steps)
        assert len(timesteps) == steps
        assert timesteps[0] == 999
        assert timesteps[-1] == 0
        assert all(a > b for a, b in itertools.pairwise(timesteps))


def test_a_single_step_starts_at_the_last_timestep():
    assert spaced_timesteps(1) == [999]
    assert spaced_timesteps(1, 10) == [9]


@pytest.mark.parametrize("steps", [0, 1001, -5])
def test_number_of_steps_out_of_range_is_refused(steps):
    with pytest.raises(ValueError, match=f"between 1 and 1000, received {steps}"):
        spaced_timesteps(steps)


@pytest.mark.parametrize("steps", [10.5, "abc", True, None])
def test_number_of_steps_that_is_not_whole_is_refused(steps):
    with pytest.raises(ValueError, match="whole number between 1 and 1000, received"):
        spaced_timesteps(steps)


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_out_of_range_is_refused(eta):
    with pytest.raises(ValueError, match="eta must be between 0 and 1"):
        ddim_sample(exact_denoiser(), torch.ones(1, 1, 1, 1), NoiseSchedule(), 10, eta)
