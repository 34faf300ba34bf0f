import numpy as np
import pytest
import torch

from medfusion_monai.diffusion.guidance import checked_interval, drop_labels, guided_denoiser, within_interval
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.networks.unet import NO_LABEL


class Recorder:
    """A network that is linear in latents, timestep and label, and keeps what it was called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, timesteps, class_labels):
        self.calls.append((x, timesteps, class_labels))
        return x * (1.0 + class_labels + 0.001 * timesteps)[:, None, None, None]


@pytest.fixture
def network():
    return Recorder()


LATENTS = torch.arange(3.0 * 4).reshape(3, 1, 2, 2) + 1.0
TIMESTEPS = torch.tensor([5, 5, 5])
LABELS = torch.tensor([0, 1, 2])


def test_scale_1_calls_the_network_once_with_the_batch_as_it_is(network):
    prediction = guided_denoiser(network, LABELS, 1.0)(LATENTS, TIMESTEPS)
    ((x, timesteps, labels),) = network.calls
    assert x is LATENTS
    assert timesteps is TIMESTEPS
    assert labels is LABELS
    assert torch.equal(prediction, Recorder()(LATENTS, TIMESTEPS, LABELS))


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, 7.5])
def test_guidance_equals_the_formula_of_two_passes(network, scale):
    guided = guided_denoiser(network, LABELS, scale)(LATENTS, TIMESTEPS)
    unconditional = Recorder()(LATENTS, TIMESTEPS, torch.full_like(LABELS, NO_LABEL))
    conditional = Recorder()(LATENTS, TIMESTEPS, LABELS)
    torch.testing.assert_close(guided, unconditional + scale * (conditional - unconditional))


def test_guidance_takes_one_call_of_the_double_batch(network):
    guided_denoiser(network, LABELS, 3.0)(LATENTS, TIMESTEPS)
    ((x, timesteps, labels),) = network.calls
    assert torch.equal(x, torch.cat([LATENTS, LATENTS]))
    assert timesteps.tolist() == [5] * 6
    assert labels.tolist() == [0, 1, 2, NO_LABEL, NO_LABEL, NO_LABEL]


def test_negative_label_takes_the_place_of_no_label(network):
    guided = guided_denoiser(network, LABELS, 2.0, negative_label=1)(LATENTS, TIMESTEPS)
    negative = Recorder()(LATENTS, TIMESTEPS, torch.ones_like(LABELS))
    conditional = Recorder()(LATENTS, TIMESTEPS, LABELS)
    torch.testing.assert_close(guided, 2.0 * conditional - negative)


def test_negative_label_may_differ_by_label(network):
    guided_denoiser(network, LABELS, 2.0, negative_label=[1, 2, 0])(LATENTS, TIMESTEPS)
    ((_, _, labels),) = network.calls
    assert labels.tolist() == [0, 1, 2, 1, 2, 0]


def test_negative_label_0_is_a_label(network):
    guided_denoiser(network, LABELS, 2.0, negative_label=0)(LATENTS, TIMESTEPS)
    assert network.calls[0][2].tolist()[3:] == [0, 0, 0]


def test_null_label_can_be_another_number(network):
    guided_denoiser(network, LABELS, 2.0, null_label=9)(LATENTS, TIMESTEPS)
    assert network.calls[0][2].tolist()[3:] == [9, 9, 9]


@pytest.mark.parametrize(("probability", "labels"), [(0.0, [0, 1, 2]), (0.5, [7, 1, 2]), (0.9, [7, 7, 2])])
def test_label_is_dropped_where_the_draw_of_its_sample_is_below_the_probability(probability, labels):
    sources = [np.random.default_rng(seed) for seed in (3, 0, 4)]  # first draws: 0.086, 0.637, 0.943
    assert drop_labels(LABELS, sources, probability, null_label=7).tolist() == labels


def halves(timesteps):
    """A denoiser that is guided in a part of the schedule, which begins and ends at given timesteps."""
    schedule, network = NoiseSchedule(), Recorder()
    interval = [schedule.noise_to_signal(timestep) for timestep in timesteps]
    guided, plain = guided_denoiser(network, LABELS, 3.0), guided_denoiser(network, LABELS)
    return within_interval(guided, plain, schedule, interval), network


def test_noise_level_is_that_of_the_variance_exploding_form_in_every_schedule():
    preserving = NoiseSchedule()
    alpha = preserving.exact_alphas_cumprod[300]
    assert preserving.noise_to_signal(300) == pytest.approx(((1 - alpha) / alpha) ** 0.5, rel=1e-12)
    assert NoiseSchedule(schedule="flow", prediction_type="velocity").noise_to_signal(749) == pytest.approx(3.0)
    without_signal = NoiseSchedule(prediction_type="v_prediction", zero_terminal_snr=True)
    assert without_signal.noise_to_signal(999) == float("inf")


@pytest.mark.parametrize(("timestep", "guided"), [(0, False), (200, False), (201, True), (500, True), (501, False)])
def test_interval_guides_above_its_low_end_up_to_its_high_end(timestep, guided):
    denoiser, network = halves((200, 500))
    timesteps = torch.full((3,), timestep)
    expected = guided_denoiser(Recorder(), LABELS, 3.0 if guided else 1.0)(LATENTS, timesteps)
    assert torch.equal(denoiser(LATENTS, timesteps), expected)
    assert [len(x) for x, _, _ in network.calls] == [6 if guided else 3]


def test_no_interval_is_guidance_everywhere():
    guided = guided_denoiser(Recorder(), LABELS, 3.0)
    assert within_interval(guided, guided_denoiser(Recorder(), LABELS), NoiseSchedule(), None) is guided


def test_interval_becomes_two_floats():
    assert checked_interval((0, 3)) == [0.0, 3.0]
    assert checked_interval(None) is None


@pytest.mark.parametrize(
    "interval",
    [3, "0.3, 3", [0.3], [0.3, 1, 3], [3, 0.3], [1, 1], [-0.1, 3], [0, float("inf")], ["0", 3], [False, True], {}],
)
def test_anything_but_an_interval_is_refused(interval):
    with pytest.raises(ValueError, match=r"guidance_interval must be two noise levels .* e\.g\. \[0\.3, 3\]"):
        checked_interval(interval)
