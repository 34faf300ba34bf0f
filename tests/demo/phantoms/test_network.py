import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms.functional import gaussian_blur

from medfusion_monai.demo.phantoms.families import FAMILIES
from medfusion_monai.demo.phantoms.network import FIRST_SEED, train_phantom_features
from medfusion_monai.evaluation.metrics.phantom_network import load_phantom_network

LARGEST_SEED = 10_000 * 1_000_003  # of the phantoms of prepare_phantoms with seed 10,000


def draw(modality, seed, number, label=None, size=64):
    phantoms = [FAMILIES[modality].draw(seed + i, i % 2 if label is None else label, size)[0] for i in range(number)]
    return torch.from_numpy(np.stack(phantoms))


def frechet_distance(first, second):
    """Measure the distance of the two Gaussians (Dowson and Landau 1982)."""
    mean = first.double().mean(0) - second.double().mean(0)
    covariances = [torch.cov(features.double().T) for features in (first, second)]
    root = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.clamp(min=0).sqrt().sum()
    return float(mean @ mean + sum(covariance.trace() for covariance in covariances) - 2 * root)


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("phantoms") / "cxr.pt"
    train_phantom_features("cxr", path, num_images=800, steps=120)
    return path


@pytest.fixture(scope="module")
def network(weights_file):
    return load_phantom_network(weights_file)


@pytest.fixture(scope="module")
def images():
    return draw("cxr", 0, 300)


@pytest.fixture(scope="module")
def distance(network, images):
    """Measure the distance of images from drawn phantoms."""
    reference = network(draw("cxr", 1000, 300))
    return lambda others: frechet_distance(reference, network(others))


def test_label_of_phantoms_that_were_not_seen_is_predicted(network, images):
    _, logits = network.predict(images)
    accuracy = ((logits > 0).long() == torch.arange(len(images)) % 2).float().mean()
    assert accuracy > 0.97


def test_weights_are_a_plain_state_dict_from_which_the_network_is_built(weights_file, network):
    state = torch.load(weights_file, weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert (network.modality_name, network.channels) == ("cxr", 1)
    assert network(torch.rand(2, 1, 32, 48)).shape == (2, 64)


@pytest.mark.parametrize("modality", FAMILIES)
def test_same_seed_gives_the_same_file(tmp_path, modality):
    for name, seed in (("a.pt", 1), ("b.pt", 1), ("c.pt", 2)):
        torch.manual_seed(len(name) + seed)
        train_phantom_features(modality, tmp_path / name, seed=seed, num_images=16, steps=3, batch_size=8)
    first, second, other = [(tmp_path / name).read_bytes() for name in ("a.pt", "b.pt", "c.pt")]
    assert first == second
    assert first != other


def test_training_leaves_the_random_state_of_others_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    train_phantom_features("cxr", tmp_path / "a.pt", num_images=8, steps=1, batch_size=2)
    assert torch.equal(torch.rand(1), expected)


def test_phantoms_that_are_learned_are_no_prepared_ones(tmp_path, monkeypatch):
    seeds = []
    family = FAMILIES["cxr"]
    spy = family._replace(draw=lambda seed, label, size: seeds.append(seed) or family.draw(seed, label, size))
    monkeypatch.setitem(FAMILIES, "cxr", spy)
    train_phantom_features("cxr", tmp_path / "a.pt", num_images=8, steps=1, batch_size=2)
    train_phantom_features("cxr", tmp_path / "b.pt", seed=1, num_images=8, steps=1, batch_size=2)
    assert len(set(seeds)) == 16
    assert min(seeds) == FIRST_SEED > LARGEST_SEED


@pytest.mark.parametrize(
    "change",
    [
        lambda images: gaussian_blur(images, 9, 2.0),
        lambda images: (images + 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(
            0, 1
        ),
        lambda images: draw("cxr", 5000, 300, label=1),
    ],
    ids=["blurred", "noisy", "one class"],
)
def test_frechet_distance_rises_when_images_are_changed(distance, images, change):
    assert distance(change(images)) > 2 * distance(images)


def test_frechet_distance_rises_with_the_share_of_a_class(distance, images):
    positive = images[1::2]
    ordered = torch.cat([images[::2], positive])
    distances = [distance(torch.cat([ordered[n:], positive[:n]])) for n in (0, 50, 100, 150)]
    assert distances == sorted(distances)


def test_size_is_brought_to_that_of_the_network(network):
    small, large = (network(draw("cxr", 0, 40, size=size)) for size in (64, 128))
    correlation = torch.corrcoef(torch.stack([small.flatten(), large.flatten()]))[0, 1]
    assert correlation > 0.98


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt are not those of phantom features"):
        load_phantom_network(tmp_path / "other.pt")


def test_unknown_modality_is_refused(tmp_path):
    with pytest.raises(ValueError, match="modality is 'mri': there are phantoms of cxr, fundus, histo"):
        train_phantom_features("mri", tmp_path / "a.pt")
