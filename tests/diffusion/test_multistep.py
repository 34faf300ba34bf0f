import itertools
import math

import pytest
import torch

from medfusion_monai.diffusion.ddim import ddim_sample
from medfusion_monai.diffusion.multistep import dpm_solver_sample, unipc_sample
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.diffusion.spacing import schedule_timesteps

SCHEDULES = {
    "epsilon": {},
    "sample": {"prediction_type": "sample"},
    "v_prediction": {"prediction_type": "v_prediction"},
    "zero_terminal_snr": {"prediction_type": "v_prediction", "zero_terminal_snr": True},
    "flow": {"schedule": "flow", "prediction_type": "velocity"},
}


def start(count=3):
    return torch.randn(count, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def crooked(latents, timesteps):
    """A network that predicts nothing meaningful, but is smooth in latents and timesteps."""
    phase = (timesteps.to(latents.dtype) / 300)[:, None, None, None]
    return torch.sin(1.7 * latents + phase) + 0.3 * latents.flip(1)


def their_samples(solver, schedule, latents, timesteps, **settings):
    """Sample with a scheduler of diffusers, given our timesteps and noise levels."""
    flow = not schedule.variance_preserving
    prediction_type = "flow_prediction" if flow else schedule.prediction_type
    theirs = solver(prediction_type=prediction_type, use_flow_sigmas=flow, final_sigmas_type="zero", **settings)
    theirs.set_timesteps(len(timesteps))
    scales = [(schedule.exact_signal[t], schedule.exact_sigma[t]) for t in timesteps]
    ratios = [sigma if flow else sigma / signal for signal, sigma in scales]
    theirs.timesteps, theirs.sigmas = torch.tensor(timesteps), torch.tensor([*ratios, 0.0], dtype=torch.float64)
    for timestep in theirs.timesteps:
        prediction = crooked(latents, timestep.expand(len(latents)))
        latents = theirs.step(prediction, timestep, latents).prev_sample
    return latents.double()


@pytest.mark.parametrize("spacing", ["linspace", "logsnr"])
@pytest.mark.parametrize("steps", [2, 5, 20])
@pytest.mark.parametrize("name", ["epsilon", "sample", "v_prediction", "flow"])
@pytest.mark.parametrize("sample", [dpm_solver_sample, unipc_sample])
def test_it_is_the_solver_of_diffusers(sample, name, steps, spacing):
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    schedule, latents = NoiseSchedule(**SCHEDULES[name]), start()
    if name == "flow":  # theirs cannot start without any signal
        schedule.exact_signal[-1], schedule.exact_sigma[-1] = 0.001, 0.999
    timesteps = schedule_timesteps(schedule, steps, spacing)
    solver, settings = {
        dpm_solver_sample: (DPMSolverMultistepScheduler, {"lower_order_final": False}),
        unipc_sample: (UniPCMultistepScheduler, {"solver_type": "bh2"}),
    }[sample]
    expected = their_samples(solver, schedule, latents, timesteps, **settings)
    actual = sample(crooked, latents, schedule, steps, spacing)
    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_first_order_is_ddim_without_noise(name):
    schedule, latents = NoiseSchedule(**SCHEDULES[name]), start()
    expected = ddim_sample(crooked, latents, schedule, 12, 0.0, spacing="karras")
    torch.testing.assert_close(dpm_solver_sample(crooked, latents, schedule, 12, "karras", order=1), expected)


def test_second_step_has_its_closed_form():
    schedule, latents = NoiseSchedule(prediction_type="sample"), torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    estimates = {999: 2.0, 600: 3.0, 0: -1.0}
    seen = []

    def denoise(noisy, timesteps):
        seen.append(noisy.item())
        return torch.full_like(noisy, estimates[int(timesteps[0])])

    (s, t, u), signal, sigma = (999, 499, 0), schedule.exact_signal, schedule.exact_sigma
    estimates[t] = estimates.pop(600)
    assert dpm_solver_sample(denoise, latents, schedule, 3, "linspace").item() == -1.0
    a, b, c = (math.log(signal[i] / sigma[i]) for i in (s, t, u))
    at_t = sigma[t] / sigma[s] * 0.5 - signal[t] * math.expm1(a - b) * 2.0
    r = (b - a) / (c - b)
    direction = (1 + 1 / (2 * r)) * 3.0 - 1 / (2 * r) * 2.0
    at_u = sigma[u] / sigma[t] * at_t - signal[u] * math.expm1(b - c) * direction
    assert seen == pytest.approx([0.5, at_t, at_u], rel=1e-9)


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_known_clean_latents_are_found_again(name):
    schedule, clean, noise = NoiseSchedule(**SCHEDULES[name]), start(), start().flip(0)

    def denoise(latents, timesteps):
        t = int(timesteps[0])
        signal, sigma = schedule.exact_signal[t], schedule.exact_sigma[t]
        estimated = (latents - signal * clean) / sigma
        return {
            "epsilon": estimated,
            "sample": clean,
            "v_prediction": signal * estimated - sigma * clean,
            "velocity": estimated - clean,
        }[schedule.prediction_type]

    for sample, steps in itertools.product((dpm_solver_sample, unipc_sample), (1, 2, 7)):
        actual = sample(denoise, noise, schedule, steps)
        torch.testing.assert_close(actual, clean, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sample", [dpm_solver_sample, unipc_sample])
def test_sample_does_not_depend_on_its_batch(sample):
    schedule, latents = NoiseSchedule(), start(4).float()
    together = sample(crooked, latents, schedule, 9)
    for index in (0, 3):
        alone = sample(crooked, latents[index : index + 1], schedule, 9)
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-5)


@pytest.mark.parametrize("sample", [dpm_solver_sample, unipc_sample])
def test_global_random_state_is_neither_used_nor_changed(sample):
    before = torch.get_rng_state()
    first, second = (sample(crooked, start(), NoiseSchedule(), 9) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("sample", [ddim_sample, dpm_solver_sample, unipc_sample])
def test_state_keeps_its_precision_under_a_network_that_answers_in_less(sample):
    seen = []

    def denoise(latents, timesteps):
        seen.append(latents.dtype)
        return latents.bfloat16()

    schedule = NoiseSchedule(prediction_type="sample")  # whose estimate is the network's answer itself
    assert sample(denoise, start().float(), schedule, 4).dtype == torch.float32
    assert seen == [torch.float32] * 4


@pytest.mark.parametrize("spacing", ["linspace", "logsnr", "karras"])
@pytest.mark.parametrize("sample", [ddim_sample, dpm_solver_sample, unipc_sample])
def test_network_is_called_at_the_timesteps_of_the_spacing(sample, spacing):
    seen = []

    def denoise(latents, timesteps):
        seen.append(timesteps.tolist())
        return latents

    sample(denoise, torch.ones(2, 1, 1, 1), NoiseSchedule(), 7, spacing=spacing)
    assert seen == [[timestep] * 2 for timestep in schedule_timesteps(NoiseSchedule(), 7, spacing)]


@pytest.mark.parametrize("name", ["zero_terminal_snr", "flow"])
def test_corrector_takes_the_mean_of_both_ends_over_a_step_from_no_signal(name):
    schedule, latents = NoiseSchedule(**SCHEDULES[name]), torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    estimates, seen = {999: 2.0, 499: 3.0, 0: -1.0}, []

    def denoise(noisy, timesteps):
        t = int(timesteps[0])
        seen.append(noisy.item())
        signal, sigma, clean = schedule.exact_signal[t], schedule.exact_sigma[t], estimates[t]
        noise = (noisy - signal * clean) / sigma
        return noise - clean if name == "flow" else signal * noise - sigma * clean

    unipc_sample(denoise, latents, schedule, 3, "linspace")
    (b, s), (c, u) = ((schedule.exact_signal[t], schedule.exact_sigma[t]) for t in (499, 0))
    corrected = s * 0.5 + b * 2.5  # over the first step the ratio of signal to sigma rises from 0
    assert seen[1] == pytest.approx(s * 0.5 + b * 2.0, rel=1e-9)
    assert seen[2] == pytest.approx(u / s * corrected + (c - u / s * b) * 3.0, rel=1e-9)


@pytest.mark.parametrize("order", [0, 3, "2"])
def test_order_out_of_range_is_refused(order):
    with pytest.raises(ValueError, match="order must be 1 or 2, received"):
        dpm_solver_sample(crooked, start(), NoiseSchedule(), 4, order=order)


def test_fresh_noise_is_refused_on_the_path_of_flow():
    schedule = NoiseSchedule(**SCHEDULES["flow"])
    with pytest.raises(ValueError, match="eta must be 0 with schedule 'flow'"):
        ddim_sample(crooked, start(), schedule, 4, 0.5)
    assert ddim_sample(crooked, start(), schedule, 4, 0.0).isfinite().all()
