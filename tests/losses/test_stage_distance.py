"""The perceptual distance on stages of EfficientNet-Lite0."""

import pytest
import torch
from torch import nn
from torchvision.transforms.functional import gaussian_blur

from medfusion_monai.losses.perceptual import STAGES, StageDistance
from medfusion_monai.weights.efficientnet_lite import load_efficientnet_lite


@pytest.fixture(scope="module")
def distance():
    return StageDistance()


def two_batches():
    source = torch.Generator().manual_seed(1)
    return [torch.rand(2, 3, 32, 48, generator=source) * 2 - 1 for _ in range(2)]


def test_distance_is_the_one_of_the_definition(distance):
    prediction, image = two_batches()
    # timm's own way to the stages; an independent implementation
    stages = load_efficientnet_lite().forward_intermediates(torch.cat([prediction, image]), intermediates_only=True)
    expected = torch.zeros(2)
    for features in stages[:STAGES]:
        first, second = nn.functional.normalize(features, dim=1).chunk(2)
        expected += (first - second).square().sum(dim=1).mean(dim=(1, 2))
    found = distance(prediction, image)
    assert found.shape == (2, 1, 1, 1)
    assert found.min() > 0.1
    torch.testing.assert_close(found.flatten(), expected, rtol=1e-4, atol=1e-5)


def test_equal_images_have_no_distance_and_blur_raises_it(distance):
    image, _ = two_batches()
    assert distance(image, image).abs().max() < 1e-6
    little, much = (distance(gaussian_blur(image, 9, sigma), image).mean() for sigma in (0.5, 2.0))
    assert 0 < little < much


def test_gradients_reach_the_prediction_and_nothing_else(distance):
    prediction, image = (batch.requires_grad_() for batch in two_batches())
    distance(prediction, image).sum().backward()
    assert prediction.grad.abs().min() > 0
    assert image.grad is None
    assert not any(parameter.requires_grad for parameter in distance.parameters())


def test_it_stays_in_evaluation_mode(distance):
    distance.train()
    assert not any(module.training for module in distance.modules())
