"""The step of the GAN against plain differentiation of both losses, and what it draws and sets."""

import copy

import pytest
import torch
from monai.inferers import SimpleInferer
from torch.nn import functional as F

from medfusion_monai.baselines import Augmentation, GanDiscriminator, GanGenerator, RelativisticLoss
from medfusion_monai.training.gan_step import GanTrainer
from medfusion_monai.training.learning_rate import GanAdam
from medfusion_monai.training.prepare_batch import GanPrepareBatch

BATCH = {"image": torch.rand(4, 1, 16, 16), "label": torch.tensor([0, 1, 1, 0]), "seed": torch.tensor([3, 4, 5, 6])}


@pytest.fixture
def networks():
    torch.manual_seed(0)
    common = {"image_size": [16, 16], "channels": [4, 8, 8]}
    pair = GanGenerator(**common, noise_channels=8), GanDiscriminator(**common)
    for network in pair:  # also where they start at zero
        for weight in network.parameters():
            weight.data += 0.05 * torch.randn(weight.shape)
    return pair


def test_both_networks_step_down_their_own_loss_from_the_same_weights(networks):
    generator, discriminator = networks
    before = [copy.deepcopy(network) for network in networks]
    augmentation, prepare = Augmentation(probability=(0.5, 0.5)), GanPrepareBatch(8)
    weights = [weight for network in networks for weight in network.parameters()]
    trainer = GanTrainer(
        discriminator=discriminator,
        augmentation=augmentation,
        ramp=GanAdam(),
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[BATCH],
        network=generator,
        optimizer=torch.optim.SGD(weights, lr=0.5),
        loss_function=RelativisticLoss((2.0, 2.0)),
        inferer=SimpleInferer(),
        prepare_batch=prepare,
        decollate=False,
    )
    trainer.run()

    noise, real, (draws,), keywords = prepare(BATCH, torch.device("cpu"))
    labels = keywords["class_labels"]
    fake = before[0](noise, labels)
    logits = [
        before[1](augmentation(images, part), labels) for images, part in zip((real, fake), draws.chunk(2), strict=True)
    ]
    wanted = torch.autograd.grad(F.softplus(logits[0] - logits[1]).mean(), list(before[0].parameters()))
    images = torch.cat([real, fake.detach()]).requires_grad_()
    judged = before[1](augmentation(images, draws), labels.repeat(2))
    slopes = torch.autograd.grad(judged.sum(), images, create_graph=True)[0].flatten(1).square().sum(1)
    loss = F.softplus(judged[4:] - judged[:4]).mean() + slopes[:4].mean() + slopes[4:].mean()
    wanted += torch.autograd.grad(loss, list(before[1].parameters()))
    old = [weight for network in before for weight in network.parameters()]
    for weight, start, gradient in zip(weights, old, wanted, strict=True):
        torch.testing.assert_close(start - weight, 0.5 * gradient, rtol=1e-3, atol=1e-6)


def test_noise_and_augmentation_of_an_image_depend_on_its_seed_alone():
    prepare = GanPrepareBatch(8)
    noise, real, (draws,), keywords = prepare(BATCH, torch.device("cpu"))
    assert real.min() < 0
    part = {name: values[2:3] for name, values in BATCH.items()}
    own_noise, _, (own_draws,), own = prepare(part, torch.device("cpu"))
    assert torch.equal(own_noise, noise[2:3])
    assert torch.equal(own_draws, draws[[2, 6]])
    assert own["class_labels"].tolist() == [keywords["class_labels"][2]]


def test_learning_rate_and_beta2_go_along_half_a_cosine():
    settings = GanAdam(lr=(2.0e-4, 1.0e-4), beta2=(0.9, 0.99), ramp_steps=4)
    optimizer, scheduler = settings.build([torch.nn.Parameter(torch.zeros(1))], 10)
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(2.0e-4)
    assert rates[2] == pytest.approx(1.5e-4)
    assert rates[4:] == pytest.approx([1.0e-4] * 3)
    settings.set_beta2(optimizer, settings.progress(2))
    assert optimizer.param_groups[0]["betas"] == pytest.approx((0.0, 0.945))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"lr": [0.0, 1.0e-4]}, "gan_lr must begin above 0"),
        ({"lr": [1.0e-4, float("inf")]}, "gan_lr must be two numbers"),
        ({"beta2": [0.9, 1.0]}, "gan_beta2 must be two numbers from 0 to"),
        ({"ramp_steps": 0}, "gan_ramp_steps must be a whole number of at least 1"),
    ],
)
def test_rate_out_of_range_is_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        GanAdam(**keys)
