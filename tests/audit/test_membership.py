import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from medfusion_monai.audit.membership import balanced, denoising_losses, membership_figures, membership_scores
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.networks.autoencoder import Autoencoder
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.networks.unet import UNet
from medfusion_monai.training.latent_statistics import measure_latent_statistics


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def items(count, seed=0):
    images = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    return [{"image": image, "label": index % 2} for index, image in enumerate(images)]


def image_stack(count, seed=0):
    return torch.stack([item["image"] for item in items(count, seed)])


class Knows(torch.nn.Module):
    """A UNet that predicts the noise of known latents exactly, and nothing of others."""

    def __init__(self, schedule, latents):
        super().__init__()
        self.schedule, self.latents = schedule, latents

    def forward(self, x, timesteps, class_labels):
        alpha = self.schedule.alphas_cumprod[timesteps][:, None, None, None]
        noise = (x[:, None] - alpha[:, None].sqrt() * self.latents) / (1 - alpha[:, None]).sqrt()
        return noise[torch.arange(len(x)), noise.square().flatten(2).mean(dim=2).sub(1).abs().argmin(dim=1)]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    autoencoder = Autoencoder(latent_channels=2, channels=(8, 8), norm_groups=4, deep_supervision=False)
    unet = UNet(2, channels=(8, 8, 8), num_res_blocks=1, embedding_channels=16, norm_groups=4)
    autoencoder.set_latent_statistics(*measure_latent_statistics(autoencoder, [{"image": image_stack(8)}]))
    return Medfusion(autoencoder, unet).eval()


def test_auc_is_scikit_learns():
    members, others = normal(80) + 0.5, normal(120, seed=1)
    figure = membership_figures(members, others)["auc"]
    labels = [1] * 80 + [0] * 120
    assert figure.value == pytest.approx(roc_auc_score(labels, torch.cat([members, others]).numpy()))
    assert figure.low < figure.value < figure.high


def test_true_positive_rate_is_that_of_scikit_learns_curve():
    members, others = normal(200) + 1.5, normal(300, seed=1)
    figure = membership_figures(members, others)["tpr_at_1_fpr"]
    labels = [1] * 200 + [0] * 300
    false, true, _ = roc_curve(labels, torch.cat([members, others]).numpy(), drop_intermediate=False)
    assert figure.value == pytest.approx(true[false <= 0.01].max())
    assert figure.low <= figure.value <= figure.high


def test_members_that_only_equal_the_limit_are_not_found():
    others = torch.cat([torch.full((2,), 9.0), torch.full((98,), 1.0)])  # one of 100 may lie above the limit: 9
    assert membership_figures(torch.tensor([9.0, 9.0, 10.0, 0.0]), others)["tpr_at_1_fpr"].value == 0.25


def test_intervals_hold_the_true_value_as_often_as_they_say():
    held = 0
    for seed in range(100):
        figure = membership_figures(normal(60, seed=2 * seed), normal(60, seed=2 * seed + 1), 200, seed)["auc"]
        held += figure.low <= 0.5 <= figure.high
    assert held >= 88


def test_rate_at_one_percent_is_withheld_where_one_percent_is_no_image():
    figure = membership_figures(normal(60), normal(60, seed=1))["tpr_at_1_fpr"]
    assert figure.value is None
    assert "60 images outside training" in figure.note


def test_scores_weigh_all_timesteps_alike():
    members, others = torch.tensor([[1.0, 200.0]]), torch.tensor([[3.0, 600.0]])
    own, other = membership_scores(members, others)
    assert own.tolist() == pytest.approx([-0.5])
    assert other.tolist() == pytest.approx([-1.5])


def test_images_that_a_network_knows_have_the_smaller_loss(network):
    schedule, known, unknown = NoiseSchedule(), items(8), items(8, seed=1)
    with torch.no_grad():
        latents = network.autoencoder.normalize(network.autoencoder.encode(image_stack(8) * 2 - 1).mean)
    knowing = Medfusion(network.autoencoder, Knows(schedule, latents))
    members = denoising_losses(knowing, schedule, known, (5, 10))
    others = denoising_losses(knowing, schedule, unknown, (5, 10))
    assert members.shape == (8, 2)
    assert members.max() < 1e-3 < others.min()


def test_loss_of_a_blind_network_is_that_of_the_noise(network):
    class Blind(torch.nn.Module):
        def forward(self, x, timesteps, class_labels):
            return torch.zeros_like(x)

    losses = denoising_losses(Medfusion(network.autoencoder, Blind()), NoiseSchedule(), items(6), (100,), draws=200)
    assert losses.mean().item() == pytest.approx(1.0, abs=0.02)


def test_losses_do_not_depend_on_the_batch_and_repeat(network):
    schedule = NoiseSchedule()
    one = denoising_losses(network, schedule, items(5), (100, 200), batch_size=5)
    two = denoising_losses(network, schedule, items(5), (100, 200), batch_size=2)
    assert torch.allclose(one, two, rtol=1e-4)
    assert torch.equal(one, denoising_losses(network, schedule, items(5), (100, 200), batch_size=5))
    assert not torch.equal(one, denoising_losses(network, schedule, items(5), (100, 200), batch_size=5, seed=1))


def test_label_is_given_to_the_network(network):
    asked = []

    class Notes(torch.nn.Module):
        def forward(self, x, timesteps, class_labels):
            asked.append((timesteps.tolist(), class_labels.tolist()))
            return x

    schedule = NoiseSchedule(num_train_timesteps=500)
    denoising_losses(Medfusion(network.autoencoder, Notes()), schedule, items(3), (100, 300), draws=1)
    assert asked == [([50] * 3, [0, 1, 0]), ([150] * 3, [0, 1, 0])]


def test_as_many_images_of_each_class_are_drawn_from_both_sets():
    training = [{"image": str(k), "label": int(k % 4 == 0)} for k in range(200)]
    held_out = [{"image": str(k), "label": int(k % 2 == 0)} for k in range(60)]
    own, other = balanced(training, held_out, 1000)
    assert [np.bincount([item["label"] for item in chosen]).tolist() for chosen in (own, other)] == [[30, 30]] * 2
    own, other = balanced(training, held_out, 20)
    assert [np.bincount([item["label"] for item in chosen]).tolist() for chosen in (own, other)] == [[10, 10]] * 2
    assert [item["image"] for item in own] != [item["image"] for item in training if item["label"] == 0][:20]
