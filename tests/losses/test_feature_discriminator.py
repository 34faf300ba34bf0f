import pytest
import torch
from torch.nn import functional as F

from medfusion_monai.losses.adversarial import hinge
from medfusion_monai.losses.feature_discriminator import STAGES, FeatureDiscriminator


@pytest.fixture
def judge():
    torch.manual_seed(0)
    return FeatureDiscriminator(width=16)


def lively(judge):
    """Give the last convolutions weights, which are 0 at first."""
    for head in judge.heads.values():
        torch.nn.init.normal_(head[-1].weight)
    return judge


def images(channels=1, side=64):
    return torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("channels", [1, 3])
def test_stages_are_judged_side_by_side(judge, channels):
    logits = judge(images(channels))
    assert logits.shape == (2, len(STAGES), 32, 32)
    assert torch.count_nonzero(logits) == 0


def test_gray_is_judged_as_equal_colours(judge):
    gray = images()
    assert torch.equal(lively(judge)(gray), judge(gray.expand(-1, 3, -1, -1)))


def test_deepest_stage_counts_as_much_as_the_first(judge):
    logits = lively(judge)(images())
    assert torch.equal(logits[:, -1].unique(return_counts=True)[1], torch.full((2 * 4,), 256))  # 2x2 logits an image


def test_images_and_heads_learn_and_the_features_stay(judge):
    image = images().requires_grad_()
    before = {name: value.clone() for name, value in judge.features.state_dict().items()}
    lively(judge).train()(image).sum().backward()
    assert image.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in judge.heads.parameters())
    assert not any(parameter.requires_grad for parameter in judge.features.parameters())
    assert all(torch.equal(value, before[name]) for name, value in judge.features.state_dict().items())


def test_heads_learn_to_tell_blurred_images_from_sharp_ones(judge):
    optimizer = torch.optim.Adam(judge.heads.parameters(), lr=2.0e-3)
    generator = torch.Generator().manual_seed(2)

    def batch():
        sharp = torch.rand(4, 1, 64, 64, generator=generator) * 2 - 1
        return sharp, F.avg_pool2d(sharp, 3, stride=1, padding=1)

    for _ in range(15):
        sharp, blurred = batch()
        loss = hinge(judge(sharp), judge(blurred))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sharp, blurred = (judge(each).mean(dim=(1, 2, 3)) for each in batch())
    assert sharp.min() > blurred.max()
