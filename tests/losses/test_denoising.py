import pytest
import torch

from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.losses.denoising import DiffusionLoss

SHAPE = (6, 3, 4, 4)
TIMESTEPS = torch.tensor([0, 1, 20, 300, 600, 999])


@pytest.fixture
def pair():
    return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))


def alone(loss, prediction, target):
    """Weigh each sample by calling the loss on it alone."""
    return [loss(prediction[i : i + 1], target[i : i + 1], TIMESTEPS[i : i + 1]).item() for i in range(len(TIMESTEPS))]


@pytest.mark.parametrize("timesteps", [None, TIMESTEPS])
@pytest.mark.parametrize(("name", "expected"), [("l1", torch.nn.L1Loss()), ("l2", torch.nn.MSELoss())])
def test_without_weights_it_is_pytorch_s_loss_bit_for_bit(name, expected, timesteps, pair):
    assert torch.equal(DiffusionLoss(NoiseSchedule(), name)(*pair, timesteps), expected(*pair))


def test_defaults_are_the_published_loss(pair):
    assert torch.equal(DiffusionLoss(NoiseSchedule())(*pair, TIMESTEPS), torch.nn.L1Loss()(*pair))


@pytest.mark.parametrize("gamma", [5.0, 1.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_min_snr_weighs_each_sample_by_its_closed_form(prediction_type, gamma, pair):
    schedule = NoiseSchedule(prediction_type=prediction_type)
    weighted, plain = DiffusionLoss(schedule, "l2", "min_snr", gamma), torch.nn.MSELoss()
    ratios = [alpha / (1 - alpha) for alpha in (schedule.exact_alphas_cumprod[t] for t in TIMESTEPS)]
    divisors = {"epsilon": lambda snr: snr, "sample": lambda snr: 1.0, "v_prediction": lambda snr: snr + 1}
    expected = [
        min(snr, gamma) / divisors[prediction_type](snr) * plain(a, b).item()
        for snr, a, b in zip(ratios, *pair, strict=True)
    ]
    assert alone(weighted, *pair) == pytest.approx(expected, rel=1e-5)
    assert weighted(*pair, TIMESTEPS).item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_min_snr_is_the_same_loss_of_the_clean_latents_whatever_is_predicted(prediction_type):
    schedule = NoiseSchedule(prediction_type=prediction_type)
    latents, noise = torch.randn(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    noisy, target = (function(latents, noise, TIMESTEPS) for function in (schedule.add_noise, schedule.target))
    prediction = target + 0.1 * latents.roll(1)
    clean = torch.stack([schedule.clean_and_noise(prediction[i], noisy[i], int(t))[0] for i, t in enumerate(TIMESTEPS)])
    snr = torch.tensor([alpha / (1 - alpha) for alpha in (schedule.exact_alphas_cumprod[t] for t in TIMESTEPS)])
    expected = (snr.clamp(max=5.0) * (clean - latents).square().flatten(1).mean(1)).mean()
    actual = DiffusionLoss(schedule, "l2", "min_snr")(prediction, target, TIMESTEPS)
    assert actual.item() == pytest.approx(expected.item(), rel=1e-4)


def test_without_timesteps_all_samples_weigh_one(pair):
    loss = DiffusionLoss(NoiseSchedule(), "l1", "min_snr")
    assert torch.equal(loss(*pair), torch.nn.L1Loss()(*pair))
    assert not torch.isclose(loss(*pair), loss(*pair, TIMESTEPS), rtol=0.01)


def test_loss_has_no_weights(pair):
    assert not DiffusionLoss(NoiseSchedule(), weighting="min_snr").state_dict()


def test_gradient_of_a_sample_is_its_weight_times_the_plain_one(pair):
    prediction, target = pair[0].clone().requires_grad_(), pair[1]
    loss = DiffusionLoss(NoiseSchedule(prediction_type="sample"), "l1", "min_snr")
    (weighted,) = torch.autograd.grad(loss(prediction, target, TIMESTEPS), prediction)
    (plain,) = torch.autograd.grad(torch.nn.L1Loss()(prediction, target), prediction)
    torch.testing.assert_close(weighted, loss.timestep_weights[TIMESTEPS][:, None, None, None] * plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "huber"}, "loss must be one of .*'huber'"),
        ({"weighting": "snr"}, "weighting must be one of .*'snr'"),
        ({"weighting": "min_snr", "gamma": 0.0}, "gamma must be a positive number, received 0.0"),
        ({"weighting": "min_snr", "gamma": "5"}, "gamma must be a positive number, received '5'"),
        ({"weighting": "min_snr", "gamma": float("nan")}, "gamma must be a positive number, received nan"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DiffusionLoss(NoiseSchedule(), **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "flow", "prediction_type": "velocity"},
        {"prediction_type": "v_prediction", "zero_terminal_snr": True},
    ],
)
def test_min_snr_is_refused_where_it_leaves_the_start_of_sampling_untrained(settings):
    with pytest.raises(ValueError, match="use weighting 'none'"):
        DiffusionLoss(NoiseSchedule(**settings), weighting="min_snr")
    DiffusionLoss(NoiseSchedule(**settings))
