"""Targets of the few-step phase, where the paths of deterministic sampling are known in closed form."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from medfusion_monai.diffusion.few_steps import distilled_sample
from medfusion_monai.diffusion.guidance import Guide
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.losses.distillation import DistillationLoss
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


def noisy_at(schedule, timesteps, seed=0):
    noise = torch.randn(len(timesteps), 2, 3, 4, generator=torch.Generator().manual_seed(seed))
    return spreads(schedule)[timesteps][:, None, None, None] * noise


def none_of(labels):
    return torch.zeros(labels, dtype=torch.long)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("prediction_type", TYPES)
def test_one_step_ends_where_the_exact_path_does(prediction_type, steps):
    """Deterministic sampling only scales centred Gaussian latents, to the spread of each noise level."""
    schedule = schedule_of(prediction_type)
    target = FewStepTarget(exact(schedule), schedule, steps, teacher_steps=64)
    timesteps = torch.tensor(target.starts)
    noisy = noisy_at(schedule, timesteps)
    prediction = target(noisy, timesteps, none_of(steps))
    assert not prediction.requires_grad
    clean, noise = schedule.clean_and_noise(prediction, noisy, timesteps)
    for row, (start, end) in enumerate(pairwise([*target.starts, None])):
        scale = SPREAD if end is None else spreads(schedule)[end]
        reached = clean[row]
        if end is not None:
            reached = schedule.exact_signal[end] * clean[row] + schedule.exact_sigma[end] * noise[row]
        torch.testing.assert_close(reached, noisy[row] * scale / spreads(schedule)[start], rtol=0.02, atol=0.002)


def test_one_step_of_the_teacher_is_its_own_guided_prediction():
    """Labels 0 and -1, 'no label', which is the last row of factors."""
    schedule = schedule_of("v_prediction")
    teacher = Linear(schedule, torch.stack([torch.full((1000,), 0.7), torch.full((1000,), 0.2)]))
    target = FewStepTarget(teacher, schedule, 4, teacher_steps=1, guidance_scale=3.0)
    timesteps = torch.tensor(target.starts)
    noisy = noisy_at(schedule, timesteps)
    clean, _ = schedule.clean_and_noise(target(noisy, timesteps, none_of(4)), noisy, timesteps)
    torch.testing.assert_close(clean, (0.2 + 3.0 * (0.7 - 0.2)) * noisy, rtol=1e-3, atol=1e-3)


def test_guide_takes_the_place_of_the_prediction_without_a_label():
    schedule = schedule_of("v_prediction")
    teacher, guide = (
        Linear(schedule, torch.stack([torch.full((1000,), own), torch.full((1000,), 0.2)])) for own in (0.7, 0.4)
    )
    target = FewStepTarget(teacher, schedule, 4, teacher_steps=1, guidance_scale=3.0, guide=Guide(guide, ""))
    assert not any(weight.requires_grad for weight in target.parameters())
    timesteps = torch.tensor(target.starts)
    noisy = noisy_at(schedule, timesteps)
    clean, _ = schedule.clean_and_noise(target(noisy, timesteps, none_of(4)), noisy, timesteps)
    torch.testing.assert_close(clean, (0.4 + 3.0 * (0.7 - 0.4)) * noisy, rtol=1e-3, atol=1e-3)


def test_more_steps_of_the_teacher_come_nearer_to_the_exact_path():
    schedule, errors = schedule_of("v_prediction"), []
    for steps in (1, 2, 4, 8):
        target = FewStepTarget(exact(schedule), schedule, 1, steps)
        noisy = noisy_at(schedule, torch.tensor([999]))
        clean, _ = schedule.clean_and_noise(target(noisy, torch.tensor([999]), none_of(1)), noisy, 999)
        errors.append(float((clean - SPREAD / spreads(schedule)[999] * noisy).abs().mean()))
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] < 0.1 * errors[0]


def test_starts_are_those_of_the_sampler_and_drawn_from_alone():
    schedule = schedule_of("v_prediction")
    seen = []
    distilled_sample(lambda x, t: seen.append(int(t[0])) or x, torch.zeros(1, 2, 3, 4), schedule, 4)
    assert seen == FewStepTarget(exact(schedule), schedule, 4).starts == [999, 771, 417, 43]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_tuned_network_samples_what_the_untuned_one_averages_away(steps):
    """Two classes of other spreads, one factor per timestep and class to be learned."""
    schedule, wanted = NoiseSchedule(64, "cosine", prediction_type="v_prediction"), torch.tensor([0.3, 0.8])
    teacher = Linear(schedule, torch.cat([exact(schedule, spread).factors.data for spread in wanted.tolist()]))
    student, loss = copy.deepcopy(teacher), DistillationLoss(schedule)
    target = FewStepTarget(teacher, schedule, steps, 16)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    source = torch.Generator().manual_seed(0)
    starts = torch.tensor(target.starts)
    for step in range(300):
        drawn, labels = (torch.randint(most, (128,), generator=source) for most in (steps, 2))
        timesteps = starts[drawn]
        noise, latents = (torch.randn(128, 1, 2, 2, generator=source) for _ in range(2))
        noisy = schedule.add_noise(latents * wanted[labels][:, None, None, None], noise, timesteps)
        optimizer.param_groups[0]["lr"] = 0.02 * (1.0 - step / 300)
        optimizer.zero_grad()
        loss(student(noisy, timesteps, labels), target(noisy, timesteps, labels), timesteps).backward()
        optimizer.step()
    noise = torch.randn(4096, 1, 2, 2, generator=source)
    labels = torch.arange(4096) % 2

    def spread_by(network):
        clean = distilled_sample(lambda x, t: network(x, t, labels), noise, schedule, steps)
        return torch.stack([clean[labels == label].std() for label in (0, 1)])

    with torch.no_grad():
        tuned, untuned = spread_by(student), spread_by(teacher)
    torch.testing.assert_close(tuned, wanted, rtol=0.1, atol=0.0)
    assert (untuned - wanted).abs().sum() > 2.0 * (tuned - wanted).abs().sum()


@pytest.mark.parametrize("steps", [3, 0, 5])
def test_other_numbers_of_steps_are_refused(steps):
    schedule = schedule_of("v_prediction")
    with pytest.raises(ValueError, match="num_inference_steps must be one of 1, 2, 4, 8"):
        FewStepTarget(exact(schedule), schedule, steps)
