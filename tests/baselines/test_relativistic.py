"""The losses against closed forms of linear and quadratic discriminators, and against plain differentiation."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medfusion_monai.baselines.relativistic import RelativisticLoss, penalty_range, ramp


def losses_of(discriminator, real, fake, penalty, progress=1.0):
    images = torch.cat([real, fake]).requires_grad_()
    return RelativisticLoss((penalty, penalty))(images, discriminator(images), progress)


@pytest.fixture
def pairs():
    source = torch.Generator().manual_seed(0)
    return [torch.randn(4, 1, 3, 3, generator=source) for _ in "xy"]


def test_penalties_of_a_linear_discriminator_are_the_squared_norm_of_its_weights(pairs):
    weights = torch.arange(9.0)
    losses = losses_of(lambda images: images.flatten(1) @ weights + 5.0, *pairs, penalty=2.0)
    assert losses.real_penalty.item() == pytest.approx(204.0)
    assert losses.fake_penalty.item() == pytest.approx(204.0)


def test_penalties_of_a_quadratic_discriminator_are_the_mean_squared_norms_of_the_images(pairs):
    losses = losses_of(lambda images: 1.5 * images.flatten(1).square().sum(1), *pairs, penalty=2.0)
    real, fake = (9.0 * images.flatten(1).square().sum(1).mean().item() for images in pairs)
    assert losses.real_penalty.item() == pytest.approx(real)
    assert losses.fake_penalty.item() == pytest.approx(fake)


def test_equal_images_cost_log_2_and_the_penalties(pairs):
    losses = losses_of(lambda images: 2.0 * images.flatten(1).sum(1), pairs[0], pairs[0], penalty=3.0)
    assert losses.generator.item() == pytest.approx(math.log(2))
    assert losses.discriminator.item() == pytest.approx(math.log(2) + 3.0 / 2 * (36 + 36))


def test_weights_of_a_linear_discriminator_decay_by_the_second_derivative_of_the_penalties(pairs):
    weights = torch.arange(9.0, requires_grad=True)
    losses = losses_of(lambda images: images.flatten(1) @ weights, pairs[0], pairs[0], penalty=0.25)
    losses.discriminator.backward()  # equal pairs: nothing but gamma |w|^2 depends on the weights
    torch.testing.assert_close(weights.grad, 2 * 0.25 * weights.detach())


def test_generator_gets_the_gradients_of_its_loss_through_the_discriminator(pairs):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 16), nn.Tanh(), nn.Linear(16, 1), nn.Flatten(0))
    real, fake = pairs
    found = losses_of(network, real, fake, penalty=1.0).fake_gradients
    fake = fake.clone().requires_grad_()
    F.softplus(network(real) - network(fake)).mean().backward()
    torch.testing.assert_close(found, fake.grad)


def test_discriminator_prefers_real_images_of_a_pair():
    weights = torch.zeros(9, requires_grad=True)
    real, fake = torch.ones(2, 1, 3, 3), torch.zeros(2, 1, 3, 3)
    losses_of(lambda images: images.flatten(1) @ weights, real, fake, penalty=0.0).discriminator.backward()
    torch.testing.assert_close(weights.grad, torch.full((9,), -0.5))


def test_ramp_is_half_a_cosine_between_its_ends():
    assert [ramp((2.0, 0.2), at) for at in (-1.0, 0.0, 0.5, 1.0, 2.0)] == pytest.approx([2.0, 2.0, 1.1, 0.2, 0.2])


def test_weight_of_the_penalties_follows_the_ramp(pairs):
    loss = RelativisticLoss((2.0, 0.0))
    images = torch.cat([pairs[0], pairs[0]]).requires_grad_()
    values = [loss(images, images.flatten(1).sum(1), at).discriminator.item() for at in (0.0, 0.5, 1.0)]
    assert values == pytest.approx([math.log(2) + 18, math.log(2) + 9, math.log(2)])


def test_penalties_are_the_published_ones_at_64_and_256_pixels():
    assert penalty_range([64, 64]) == [2.0, 0.2]
    assert penalty_range([256, 256]) == [150.0, 15.0]
    assert 2.0 < penalty_range([128, 128])[0] < 150.0


@pytest.mark.parametrize("penalty", [[1.0], [-1.0, 0.0], "2", [1.0, float("nan")], 2.0])
def test_penalty_that_is_no_pair_of_numbers_is_refused(penalty):
    with pytest.raises(ValueError, match="gan_penalty must be two numbers of at least 0"):
        RelativisticLoss(penalty)
