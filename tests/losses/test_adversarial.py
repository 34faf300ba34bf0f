import pytest
import torch
from torch import nn

from medfusion_monai.losses.adversarial import AdversarialLoss, hinge
from medfusion_monai.losses.reconstruction import ReconstructionLoss
from medfusion_monai.networks.autoencoder import Autoencoder, AutoencoderOutput, DiagonalGaussian
from medfusion_monai.networks.discriminator import PatchDiscriminator


class Judge(nn.Module):
    """A discriminator with one weight: logits are that many times the pixels."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, image):
        return self.factor * image


def output_of(reconstruction, low=None):
    return AutoencoderOutput(reconstruction, low, DiagonalGaussian(torch.zeros(1, 2, 1, 1)))


@pytest.mark.parametrize(
    ("real", "fake", "expected"),
    [
        ([0.0], [0.0], 1.0),
        ([1.0], [-1.0], 0.0),
        ([5.0], [-7.0], 0.0),
        ([-1.0], [1.0], 2.0),
        ([0.5, 3.0], [-2.0, 0.0], 0.5 * 0.25 + 0.5 * 0.5),
    ],
)
def test_hinge_loss_has_its_closed_form(real, fake, expected):
    assert hinge(torch.tensor(real), torch.tensor(fake)).item() == pytest.approx(expected)


def generator_terms(loss, output, reconstruction, layer, **kwargs):
    """The terms at one resolution."""
    return loss.generator_loss(output, [reconstruction], [layer], **kwargs)


def test_generator_terms_are_minus_the_sums_of_the_logits_of_each_resolution():
    scale = torch.tensor(1.0, requires_grad=True)
    output = output_of(scale * torch.full((2, 1, 4, 4), 0.5), scale * torch.full((2, 1, 2, 2), 0.25))
    terms = AdversarialLoss([Judge(2.0), Judge(4.0)]).generator_loss(output, [scale * 3.0, scale], [scale, scale])
    assert (terms["adversarial"] / terms["adversarial_weight"]).item() == pytest.approx(-2.0 * 0.5 * 32)
    assert (terms["adversarial_low"] / terms["adversarial_weight_low"]).item() == pytest.approx(-4.0 * 0.25 * 8)


def test_adaptive_weight_has_its_closed_form():
    scale = torch.tensor(1.0, requires_grad=True)
    output = output_of(scale * torch.tensor([1.0, 2.0, 3.0, 2.0]).reshape(1, 1, 2, 2))
    terms = generator_terms(AdversarialLoss([Judge(5.0)], weight=0.5), output, scale * 30.0, scale)
    assert terms["adversarial_weight"].item() == pytest.approx(0.5 * 30 / (5 * 8), rel=1e-4)


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("deviation", [1.0e-4, 1.0e-3, 1.0e-2, 1.0e-1])
def test_both_losses_pull_equally_at_each_head(deviation, size):
    """From output weights of 1e-3 on, as in the published code; below it the 1e-4 in the ratio's divisor counts."""
    torch.manual_seed(0)
    autoencoder = Autoencoder(latent_channels=2, channels=(8, 16))
    judges = [PatchDiscriminator(1, (8, 16)) for _ in range(2)]
    for layer in (*(judge.conv_out for judge in judges), autoencoder.conv_out, autoencoder.conv_out_low):
        nn.init.normal_(layer.weight, std=deviation)
    image = torch.rand(2, 1, size, size) * 2 - 1
    output = autoencoder(image, torch.randn(2, 2, size // 2, size // 2))
    loss = ReconstructionLoss(pixel_loss="l1", perceptual_weight=0.0)
    terms = loss(output, image)
    full, low = (terms[f"pixel{end}"] + terms[f"ssim{end}"] for end in ("", "_low"))
    layers = autoencoder.output_layers
    adversarial = AdversarialLoss(judges).generator_loss(output, [full, low], layers, loss.scale(image))

    def ratio(name, reconstruction, layer):
        norms = [
            torch.autograd.grad(part, layer, retain_graph=True)[0].norm()
            for part in (adversarial[name], reconstruction)
        ]
        return (norms[0] / norms[1]).item()

    for name, reconstruction, layer in zip(("adversarial", "adversarial_low"), (full, low), layers, strict=True):
        assert ratio(name, reconstruction, layer) == pytest.approx(1.0, rel=0.2 if deviation < 1.0e-3 else 0.01)


@pytest.mark.parametrize(("slope", "expected"), [(2.0, 1.0e4), (0.0, 0.0)])
def test_adaptive_weight_is_clamped(slope, expected):
    scale = torch.tensor(1.0, requires_grad=True)
    output = output_of(scale * torch.ones(1, 1, 2, 2))
    terms = generator_terms(AdversarialLoss([Judge(0.0)]), output, scale * slope, scale)
    assert terms["adversarial_weight"].item() == expected


def test_adaptive_weight_is_a_constant_for_the_gradient():
    scale = torch.tensor(2.0, requires_grad=True)
    output = output_of(scale * torch.ones(1, 1, 2, 2))
    terms = generator_terms(AdversarialLoss([Judge(5.0)]), output, scale.square(), scale)
    assert not terms["adversarial_weight"].requires_grad
    (gradient,) = torch.autograd.grad(terms["adversarial"], scale)
    assert gradient.item() == pytest.approx(-20.0 * terms["adversarial_weight"].item())


@pytest.mark.parametrize(
    ("start_step", "expected"), [(3, [False, False, False, True, True]), (0, [True] * 5), (None, [False] * 5)]
)
def test_discriminators_join_in_after_the_start_step(start_step, expected):
    loss = AdversarialLoss([Judge()], start_step=start_step)
    assert [loss.active(iteration) for iteration in range(1, 6)] == expected


def test_discriminator_loss_adds_the_resolutions_against_the_nearest_exact_image():
    image = torch.linspace(-0.9, 0.9, 16).reshape(1, 1, 4, 4)
    output = output_of(torch.full((1, 1, 4, 4), 0.1), torch.full((1, 1, 2, 2), 0.2))
    loss = AdversarialLoss([Judge(), Judge(0.5)]).discriminator_loss(output, image)
    full = 0.5 * ((1 - image).mean() + 1.1)
    low = 0.5 * ((1 - 0.5 * image[:, :, 1::2, 1::2]).mean() + 1.1)
    torch.testing.assert_close(loss.detach(), full + low)


def test_discriminator_loss_sends_no_gradient_to_the_autoencoder():
    reconstruction = torch.zeros(1, 1, 4, 4, requires_grad=True)
    loss = AdversarialLoss([Judge()])
    loss.discriminator_loss(output_of(reconstruction), torch.full((1, 1, 4, 4), 0.5)).backward()
    assert reconstruction.grad is None
    assert loss.discriminators[0].factor.grad.item() == pytest.approx(-0.25)


def test_second_discriminator_rests_without_deep_supervision():
    output, image = output_of(torch.zeros(1, 1, 4, 4)), torch.zeros(1, 1, 4, 4)
    both, one = AdversarialLoss([Judge(), Judge()]), AdversarialLoss([Judge()])
    assert torch.equal(both.discriminator_loss(output, image), one.discriminator_loss(output, image))


def test_balance_is_that_of_sums_over_pixels():
    image = torch.rand(2, 1, 4, 4)
    reconstruction = torch.nn.Parameter(torch.rand(2, 1, 4, 4))
    output = output_of(reconstruction * 1.0)
    loss = (reconstruction - image).abs().sum()
    summed = generator_terms(AdversarialLoss([Judge()]), output, loss, reconstruction)
    averaged = generator_terms(AdversarialLoss([Judge()]), output, loss / 16, reconstruction, scale=16.0)
    assert torch.allclose(averaged["adversarial"] * 16, summed["adversarial"])
    assert summed["adversarial_weight"] > 0


def test_adaptive_weight_of_two_processes_is_that_of_their_batches_together(two_processes):
    images = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(3))

    def weight(images):
        scale = torch.tensor(1.5, requires_grad=True)
        output = output_of(scale * images)
        loss = (scale * images).square().mean()
        terms = generator_terms(AdversarialLoss([Judge(5.0)]), output, loss, scale)
        return terms["adversarial_weight"].item()

    together = weight(images)
    assert two_processes(lambda rank: weight(images[2 * rank : 2 * rank + 2])) == pytest.approx([together] * 2)
    assert weight(images[:2]) != pytest.approx(together, rel=0.05)
