"""Two narrow Gaussians: sixteen small GANs with our losses keep both, where the standard GAN loses one in many."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medfusion_monai.baselines.relativistic import RelativisticLoss

GANS, BATCH, STEPS, SPREAD = 16, 16, 600, 0.02
CENTRES = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])


class Networks(nn.Module):
    """As many networks of three layers as there are GANs, trained at the price of one."""

    def __init__(self, outputs, source, width=32):
        super().__init__()
        sizes = [(2, width), (width, width), (width, outputs)]
        self.weights = nn.ParameterList(torch.randn(GANS, a, b, generator=source) * (2 / a) ** 0.5 for a, b in sizes)
        self.biases = nn.ParameterList(torch.zeros(GANS, 1, b) for _, b in sizes)

    def forward(self, x):
        """Map (GANS, N, 2) to (GANS, N, outputs)."""
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, F.leaky_relu(x, 0.2) if index else x, weight)
        return x


def relativistic(judge, real, fake, weights):
    points = torch.cat([real, fake.detach()]).requires_grad_()
    losses = RelativisticLoss((0.3, 0.3))(points, judge(points))
    losses.discriminator.backward(inputs=weights)
    fake.backward(losses.fake_gradients)


def standard(judge, real, fake, weights):
    """Goodfellow et al. 2014: the loss that does not saturate, no penalties."""
    (F.softplus(-judge(real)).mean() + F.softplus(judge(fake.detach())).mean()).backward(inputs=weights)
    held = [weight.grad.clone() for weight in weights]
    F.softplus(-judge(fake)).mean().backward()
    for weight, gradient in zip(weights, held, strict=True):
        weight.grad = gradient


def smaller_shares(take_step):
    """Train all GANs and return for each the share (GANS,) of its points near the centre that has fewer."""
    source = torch.Generator().manual_seed(0)
    generator, discriminator = Networks(2, source), Networks(1, source)
    weights = list(discriminator.parameters())
    optimizer = torch.optim.Adam([*generator.parameters(), *weights], lr=1.0e-2, betas=(0.0, 0.99))

    def judge(points):
        points = points.reshape(-1, GANS, BATCH, 2).transpose(0, 1)  # (sets * GANS * BATCH, 2) -> GANS first
        logits = discriminator(points.reshape(GANS, -1, 2))
        return logits.reshape(GANS, -1, BATCH).transpose(0, 1).reshape(-1)

    for _ in range(STEPS):
        which = (torch.rand(GANS, BATCH, generator=source) < 0.5).long()
        real = CENTRES[which] + SPREAD * torch.randn(GANS, BATCH, 2, generator=source)
        fake = generator(torch.randn(GANS, BATCH, 2, generator=source))
        optimizer.zero_grad()
        take_step(judge, real.reshape(-1, 2), fake.reshape(-1, 2), weights)
        optimizer.step()
    with torch.no_grad():
        drawn = generator(torch.randn(GANS, 1000, 2, generator=source))
    near = [((drawn - centre).norm(dim=-1) < 0.5).float().mean(1) for centre in CENTRES]
    return torch.stack(near).amin(0)


@pytest.mark.slow
def test_our_losses_keep_both_modes_where_the_standard_gan_loses_one():
    assert (smaller_shares(relativistic) > 0.2).sum() >= GANS - 1
    assert (smaller_shares(standard) < 0.05).sum() >= GANS // 5
