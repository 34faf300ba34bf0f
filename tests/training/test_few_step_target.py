"""Targets of the few-step phase, where the paths of deterministic DDIM are known in closed form."""

import copy

import pytest
import torch
from torch import nn

from medfusion_monai.diffusion.few_steps import consistency_sample
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.losses.consistency import ConsistencyLoss
from medfusion_monai.training.few_step_target import FewStepTarget

SPREAD = 0.5
TYPES = {"epsilon": "linear", "sample": "linear", "v_prediction": "scaled_linear", "velocity": "flow"}


def schedule_of(prediction_type):
    return NoiseSchedule(schedule=TYPES[prediction_type], prediction_type=prediction_type)


class Linear(nn.Module):
    """A UNet for centred Gaussian latents: clean latents are noisy ones times a factor of the timestep and label."""

    def __init__(self, schedule, factors):
        super().__init__()
        self.schedule, self.factors = schedule, nn.Parameter(factors)  # (labels, T)

    def forward(self, x, timesteps, class_labels):
        clean = self.factors[class_labels, timesteps][:, None, None, None] * x
        return self.schedule.target(clean, self.schedule.noise_in(x, clean, timesteps), timesteps)


def spreads(schedule, spread=SPREAD):
    """Standard deviation of the noisy latents at each timestep."""
    return (schedule.signal.square() * spread**2 + schedule.sigma.square()).sqrt()


def exact(schedule, spread=SPREAD):
    """The best denoiser of Gaussian latents, which phase two would find."""
    return Linear(schedule, (schedule.signal * spread**2 / spreads(schedule, spread).square())[None])


def end_of_path(schedule):
    """The network that knows where each path ends: deterministic DDIM only scales Gaussian latents."""
    return Linear(schedule, (SPREAD / spreads(schedule))[None])


def clean_of(schedule, prediction, noisy, timesteps):
    return schedule.clean_and_noise(prediction, noisy, timesteps)[0]


def noisy_batch(schedule, timesteps, seed=0):
    noise = torch.randn(len(timesteps), 2, 3, 4, generator=torch.Generator().manual_seed(seed))
    return spreads(schedule)[timesteps][:, None, None, None] * noise


@pytest.mark.parametrize("prediction_type", TYPES)
def test_ends_of_paths_are_their_own_targets(prediction_type):
    schedule, timesteps = schedule_of(prediction_type), torch.tensor([3, 40, 300, 700, 980])
    student, noisy = end_of_path(schedule), noisy_batch(schedule, timesteps)
    target = FewStepTarget(exact(schedule), schedule, 125, 100)(noisy, timesteps, torch.zeros(5).long(), student)
    found, wanted = (clean_of(schedule, value, noisy, timesteps) for value in (target, student(noisy, timesteps, 0)))
    torch.testing.assert_close(found, wanted, rtol=0.01, atol=0.005)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_without_noise_left_the_target_is_the_guided_estimate_of_the_teacher(prediction_type):
    """Labels 0 and -1, 'no label', which is the last row of factors."""
    schedule, timesteps = schedule_of(prediction_type), torch.tensor([5, 60, 99])
    teacher = Linear(schedule, torch.stack([torch.full((1000,), 0.7), torch.full((1000,), 0.2)]))
    student, noisy = Linear(schedule, torch.full((2, 1000), 9.0)), noisy_batch(schedule, timesteps)
    target = FewStepTarget(teacher, schedule, 200, 2, guidance_scale=3.0)
    clean = clean_of(schedule, target(noisy, timesteps, torch.zeros(3).long(), student), noisy, timesteps)
    torch.testing.assert_close(clean, (0.2 + 3.0 * (0.7 - 0.2)) * noisy, rtol=1e-3, atol=1e-3)


def test_target_is_what_the_student_estimates_at_the_end_of_the_teachers_step():
    schedule, timesteps = schedule_of("v_prediction"), torch.tensor([500, 900])
    teacher, student = exact(schedule), Linear(schedule, torch.linspace(0.1, 0.9, 1000)[None])
    noisy = noisy_batch(schedule, timesteps)
    lower, step = timesteps, noisy
    for length in (62, 63):
        clean = clean_of(schedule, teacher(step, lower, 0), step, lower)
        noise = schedule.noise_in(step, clean, lower)
        lower = lower - length
        step = schedule.add_noise(clean, noise, lower)
    wanted = student.factors[0, lower][:, None, None, None] * step
    target = FewStepTarget(teacher, schedule, 125, 2)(noisy, timesteps, torch.zeros(2).long(), student)
    assert not target.requires_grad
    torch.testing.assert_close(clean_of(schedule, target, noisy, timesteps), wanted)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_network_that_knows_the_ends_samples_the_data_in_any_number_of_steps(steps):
    schedule, source = schedule_of("v_prediction"), torch.Generator().manual_seed(steps)
    noise = torch.randn(4096, 2, 3, 4, generator=source)

    def spread_by(network):
        clean = consistency_sample(
            lambda x, t: network(x, t, torch.zeros(len(x)).long()),
            noise,
            schedule,
            steps,
            lambda: torch.randn(noise.shape, generator=source),
            "quadratic",
        )
        return clean.std().item()

    assert spread_by(end_of_path(schedule)) == pytest.approx(SPREAD, rel=0.01)
    if steps == 1:
        assert spread_by(exact(schedule)) < 0.1 * SPREAD  # the mean of all latents


def test_tuned_network_samples_in_one_step_what_the_untuned_one_averages_away():
    """Two classes of other spreads, one factor per timestep and class to be learned."""
    schedule, wanted = NoiseSchedule(64, "cosine", prediction_type="v_prediction"), torch.tensor([0.3, 0.8])
    teacher = Linear(schedule, torch.cat([exact(schedule, spread).factors.data for spread in wanted.tolist()]))
    student, loss = copy.deepcopy(teacher), ConsistencyLoss(schedule, smoothing=0.3)
    target = FewStepTarget(teacher, schedule, 8, 8)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    source = torch.Generator().manual_seed(0)
    for step in range(600):
        timesteps, labels = (torch.randint(most, (256,), generator=source) for most in (64, 2))
        noise, latents = (torch.randn(256, 1, 2, 2, generator=source) for _ in range(2))
        noisy = schedule.add_noise(latents * wanted[labels][:, None, None, None], noise, timesteps)
        goal = target(noisy, timesteps, labels, student)
        optimizer.param_groups[0]["lr"] = 0.01 * (1.0 - step / 600)
        optimizer.zero_grad()
        loss(student(noisy, timesteps, labels), goal, timesteps).backward()
        optimizer.step()
    tuned, untuned = (network.factors.data[:, -1] * spreads(schedule, 1.0)[-1] for network in (student, teacher))
    torch.testing.assert_close(tuned, wanted, rtol=0.15, atol=0.0)
    assert (untuned < 0.5 * wanted).all()
