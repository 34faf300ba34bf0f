import itertools
import math
from typing import get_args

import pytest

from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.diffusion.spacing import Spacing, schedule_timesteps, spaced_timesteps

SPACINGS = get_args(Spacing)
SCHEDULES = [
    NoiseSchedule(),
    NoiseSchedule(60, "cosine"),
    NoiseSchedule(60, prediction_type="v_prediction", zero_terminal_snr=True),
    NoiseSchedule(1000, "flow", prediction_type="velocity"),
    NoiseSchedule(2),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["published", "cosine", "zero_terminal_snr", "flow", "two"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_timesteps_fall_from_the_last_to_zero_for_every_number_of_steps(spacing, schedule):
    last = schedule.num_train_timesteps - 1
    for steps in range(2, min(80, last + 1) + 1):
        timesteps = schedule_timesteps(schedule, steps, spacing)
        assert len(timesteps) == steps
        assert (timesteps[0], timesteps[-1]) == (last, 0)
        assert all(a > b for a, b in itertools.pairwise(timesteps)), timesteps


@pytest.mark.parametrize("spacing", SPACINGS)
def test_all_timesteps_are_used_if_as_many_steps_are_asked_for(spacing):
    assert schedule_timesteps(NoiseSchedule(50), 50, spacing) == list(range(49, -1, -1))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_single_step_starts_at_the_last_timestep_in_any_spacing(spacing):
    assert schedule_timesteps(NoiseSchedule(), 1, spacing) == [999]


def test_default_is_the_published_spacing():
    assert schedule_timesteps(NoiseSchedule(), 150) == spaced_timesteps(150)


def curve(name, schedule):
    signal, sigma = schedule.exact_signal, schedule.exact_sigma
    return {
        "linspace": lambda t: t,
        "quadratic": lambda t: math.sqrt(t),
        "logsnr": lambda t: math.log(signal[t] / sigma[t]),
        "karras": lambda t: (sigma[t] / signal[t]) ** (1 / 7),
    }[name]


@pytest.mark.parametrize("spacing", SPACINGS)
def test_gaps_are_even_in_the_quantity_that_the_spacing_is_named_for(spacing):
    schedule = NoiseSchedule(100_000, beta_start=2e-5, beta_end=2e-4)  # so many that rounding does not show
    quantity = curve(spacing, schedule)
    values = [quantity(t) for t in schedule_timesteps(schedule, 12, spacing)]
    gaps = [a - b for a, b in itertools.pairwise(values)]
    assert gaps == pytest.approx([(values[0] - values[-1]) / 11] * 11, rel=0.05)


def test_spacings_differ():
    chosen = [tuple(schedule_timesteps(NoiseSchedule(), 10, spacing)) for spacing in SPACINGS]
    assert len(set(chosen)) == len(SPACINGS)


def test_unknown_spacing_is_refused():
    with pytest.raises(ValueError, match="spacing must be one of .*received 'even'"):
        schedule_timesteps(NoiseSchedule(), 10, "even")


@pytest.mark.parametrize("steps", [0, 1001, 10.5, "abc", True, None])
def test_number_of_steps_is_checked_for_every_spacing(steps):
    for spacing in SPACINGS:
        with pytest.raises(ValueError, match="whole number between 1 and 1000, received"):
            schedule_timesteps(NoiseSchedule(), steps, spacing)
