import itertools
import math

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler

from medfusion_monai.diffusion.ddim import ddim_coefficients
from medfusion_monai.diffusion.schedule import NoiseSchedule

PREDICTION_TYPES = ["epsilon", "sample", "v_prediction"]


def test_published_schedule_is_reproduced(vectors, relative_error):
    tensors, _ = vectors("schedule_scaled_linear")
    schedule = NoiseSchedule()
    assert relative_error(schedule.betas, tensors["betas"]) < 1e-5
    assert relative_error(schedule.alphas_cumprod, tensors["alphas_cumprod"]) < 1e-5


def test_published_noisy_latents_are_reproduced(vectors, relative_error):
    tensors, _ = vectors("schedule_scaled_linear")
    noisy = NoiseSchedule().add_noise(tensors["x0"], tensors["noise"], tensors["timesteps"])
    assert relative_error(noisy, tensors["x_t"]) < 1e-5


def test_ddim_step_to_the_previous_timestep_has_the_posterior_of_ddpm(vectors, relative_error):
    tensors, _ = vectors("schedule_scaled_linear")
    alphas = NoiseSchedule().exact_alphas_cumprod
    rows = []
    for alpha, alpha_previous in zip(alphas, [1.0, *alphas[:-1]], strict=True):
        clean, noise, sigma = ddim_coefficients(alpha, alpha_previous, eta=1.0)
        per_noisy = noise / math.sqrt(1 - alpha)  # the noise is (x_t - sqrt(alpha) x_0) / sqrt(1 - alpha)
        rows.append((clean - per_noisy * math.sqrt(alpha), per_noisy, sigma**2))
    mean_of_clean, mean_of_noisy, variance = torch.tensor(rows, dtype=torch.float64).T
    assert relative_error(mean_of_clean, tensors["posterior_mean_coef1"]) < 1e-5
    assert relative_error(mean_of_noisy, tensors["posterior_mean_coef2"]) < 1e-5
    assert relative_error(variance, tensors["posterior_variance"]) < 1e-5


@pytest.mark.parametrize("name", ["linear", "scaled_linear"])
def test_betas_equal_those_of_monai(name):
    theirs = DDPMScheduler(1000, schedule=f"{name}_beta", beta_start=0.002, beta_end=0.02)
    ours = NoiseSchedule(1000, schedule=name)
    torch.testing.assert_close(ours.betas, theirs.betas, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-3, atol=1e-6)


def test_cosine_schedule_equals_that_of_monai():
    theirs, ours = DDPMScheduler(1000, schedule="cosine"), NoiseSchedule(1000, schedule="cosine")
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("timestep", [0, 99, 499, 900, 998])
def test_cosine_schedule_has_its_closed_form(timestep):
    def curve(time):
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    alpha = NoiseSchedule(1000, schedule="cosine").exact_alphas_cumprod[timestep]
    assert alpha == pytest.approx(curve((timestep + 1) / 1000) / curve(0), rel=1e-9)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_signal_only_falls_and_never_vanishes(name):
    alphas = NoiseSchedule(1000, schedule=name).exact_alphas_cumprod
    assert all(1 > a > b > 0 for a, b in itertools.pairwise(alphas))


def test_noise_is_added_per_sample_with_unit_variance_kept():
    torch.manual_seed(0)
    schedule = NoiseSchedule()
    noisy = schedule.add_noise(torch.randn(3, 1, 200, 200), torch.randn(3, 1, 200, 200), torch.tensor([0, 400, 999]))
    torch.testing.assert_close(noisy.std(dim=(1, 2, 3)), torch.ones(3), rtol=0.02, atol=0)


@pytest.mark.parametrize("timestep", [0, 10, 500, 999])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_target_leads_back_to_clean_latents_and_noise(prediction_type, timestep):
    torch.manual_seed(0)
    schedule = NoiseSchedule(prediction_type=prediction_type)
    latents, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    timesteps = torch.tensor([timestep] * 2)
    noisy = schedule.add_noise(latents, noise, timesteps)
    clean, estimated_noise = schedule.clean_and_noise(schedule.target(latents, noise, timesteps), noisy, timestep)
    torch.testing.assert_close(clean, latents, rtol=0, atol=2e-4)
    torch.testing.assert_close(estimated_noise, noise, rtol=0, atol=2e-4)


def test_velocity_is_the_rotated_pair_of_noise_and_latents():
    schedule = NoiseSchedule(prediction_type="v_prediction")
    alpha = schedule.exact_alphas_cumprod[300]
    target = schedule.target(torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 5.0), torch.tensor([300]))
    assert target.item() == pytest.approx(5.0 * math.sqrt(alpha) - 2.0 * math.sqrt(1 - alpha), rel=1e-5)


def test_exact_scales_are_the_roots_of_the_alphas():
    schedule = NoiseSchedule()
    roots = torch.linspace(0.002**0.5, 0.02**0.5, 1000, dtype=torch.float64)
    alphas = torch.cumprod(1 - roots.square(), 0)
    assert schedule.exact_alphas_cumprod == alphas.tolist()
    assert schedule.exact_signal == alphas.sqrt().tolist()
    assert schedule.exact_sigma == (1 - alphas).sqrt().tolist()


def test_no_signal_is_left_at_the_last_timestep_with_zero_terminal_snr():
    plain = NoiseSchedule(prediction_type="v_prediction")
    schedule = NoiseSchedule(prediction_type="v_prediction", zero_terminal_snr=True)
    assert (schedule.exact_signal[-1], schedule.exact_sigma[-1]) == (0.0, 1.0)
    assert schedule.exact_signal[0] == pytest.approx(plain.exact_signal[0], rel=1e-12)
    assert all(a > b for a, b in itertools.pairwise(schedule.exact_signal))


def test_zero_terminal_snr_stretches_the_signal_linearly_and_keeps_the_variance():
    plain = NoiseSchedule(prediction_type="sample").exact_signal
    schedule = NoiseSchedule(prediction_type="sample", zero_terminal_snr=True)
    for t in (1, 250, 500, 900):
        share = (plain[t] - plain[-1]) / (plain[0] - plain[-1])
        assert schedule.exact_signal[t] == pytest.approx(share * plain[0], rel=1e-9)
        assert schedule.exact_signal[t] ** 2 + schedule.exact_sigma[t] ** 2 == pytest.approx(1.0, rel=1e-12)


def test_zero_terminal_snr_has_the_betas_of_diffusers():
    from diffusers import DDPMScheduler as Theirs

    betas = {"beta_start": 0.002, "beta_end": 0.02}
    theirs = Theirs(1000, beta_schedule="scaled_linear", rescale_betas_zero_snr=True, **betas)
    ours = NoiseSchedule(prediction_type="v_prediction", zero_terminal_snr=True, **betas)
    torch.testing.assert_close(ours.betas, theirs.betas, rtol=2e-3, atol=1e-5)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=2e-3, atol=1e-7)


def test_flow_is_the_straight_path_from_latents_to_noise():
    schedule = NoiseSchedule(10, "flow", prediction_type="velocity")
    assert schedule.exact_sigma == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], rel=1e-12)
    assert schedule.exact_signal == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0], rel=1e-12)
    assert (schedule.exact_signal[-1], schedule.variance_preserving) == (0.0, False)
    latents, noise = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 5.0)
    assert schedule.add_noise(latents, noise, torch.tensor([2])).item() == pytest.approx(0.7 * 2.0 + 0.3 * 5.0)
    assert schedule.target(latents, noise, torch.tensor([2])).item() == 3.0


def test_velocity_of_flow_is_the_derivative_of_its_path():
    schedule = NoiseSchedule(1000, "flow", prediction_type="velocity")
    latents, noise = torch.randn(2, 1, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one, two = (schedule.add_noise(latents, noise, torch.tensor([t])) for t in (400, 401))
    torch.testing.assert_close(
        (two - one) * 1000, schedule.target(latents, noise, torch.tensor([400])), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "flow", "prediction_type": "velocity"},
        {"prediction_type": "v_prediction", "zero_terminal_snr": True},
        {"prediction_type": "sample", "zero_terminal_snr": True},
    ],
)
@pytest.mark.parametrize("timestep", [0, 500, 999])
def test_targets_of_schedules_without_last_signal_lead_back_to_clean_latents_and_noise(settings, timestep):
    schedule = NoiseSchedule(**settings)
    latents, noise = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([timestep] * 2)
    noisy = schedule.add_noise(latents, noise, timesteps)
    clean, estimated_noise = schedule.clean_and_noise(schedule.target(latents, noise, timesteps), noisy, timestep)
    torch.testing.assert_close(clean, latents, rtol=0, atol=1e-5)
    torch.testing.assert_close(estimated_noise, noise, rtol=0, atol=2e-4)


def test_schedule_has_no_weights():
    assert not NoiseSchedule().state_dict()
    assert not NoiseSchedule(schedule="flow", prediction_type="velocity").state_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": "quadratic"}, "schedule must be one of .*'quadratic'"),
        ({"prediction_type": "noise"}, "prediction_type must be one of .*'noise'"),
        ({"beta_start": 0.0}, "0 < beta_start"),
        ({"beta_start": 0.03}, "beta_start <= beta_end"),
        ({"beta_end": 1.0}, "beta_end < 1"),
        ({"num_train_timesteps": 0}, "at least 1, received 0"),
        ({"zero_terminal_snr": True}, "zero_terminal_snr needs prediction_type 'v_prediction' or 'sample'.*'epsilon'"),
        ({"zero_terminal_snr": "true", "prediction_type": "sample"}, "must be true or false, received 'true'"),
        ({"zero_terminal_snr": True, "prediction_type": "sample", "num_train_timesteps": 1}, "two timesteps or more"),
        ({"schedule": "flow"}, "'flow' and prediction_type 'velocity' can only be used together.*'epsilon'"),
        ({"prediction_type": "velocity"}, "can only be used together, received schedule 'scaled_linear'"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(**arguments)
