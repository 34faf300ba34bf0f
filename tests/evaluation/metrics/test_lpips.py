import hashlib

import lpips
import pytest
import torch
from torch import nn
from torchvision import models

from medfusion_monai.evaluation.metrics.lpips import load_lpips, lpips_distance
from medfusion_monai.weights import pretrained

ARCHITECTURES = {"alex": "alexnet", "vgg": "vgg16"}


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def random_features(net):
    """Make the convolutions of torchvision's classifier, which are all that LPIPS looks at."""
    torch.manual_seed(0)
    features = models.vgg.make_layers(models.vgg.cfgs["D"]) if net == "vgg" else models.alexnet().features
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    return {f"features.{name}": value for name, value in features.state_dict().items()}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request, tmp_path_factory):
    """Return a backbone, a file of random weights, and our and the lpips library's network on them."""
    net = request.param
    path = tmp_path_factory.mktemp("lpips") / "backbone.pth"
    state = random_features(net)
    torch.save(state, path)
    with pytest.MonkeyPatch.context() as patch:
        build = getattr(models, ARCHITECTURES[net])

        def with_weights(pretrained):
            assert pretrained
            network = build()
            network.load_state_dict(state, strict=False)
            return network

        patch.setattr(lpips.pretrained_networks.tv, ARCHITECTURES[net], with_weights)
        library = lpips.LPIPS(net=net, verbose=False)
    return net, path, load_lpips(net, path, sha256_of(path)), library


def two_batches(channels=3, size=(40, 48)):
    source = torch.Generator().manual_seed(1)
    return [torch.rand(2, channels, *size, generator=source) for _ in range(2)]


def test_distance_is_the_one_of_the_lpips_library(case):
    _, _, network, library = case
    prediction, image = two_batches()
    distance = lpips_distance(prediction, image, network)
    assert distance.shape == (2,)
    expected = library(prediction, image, normalize=True).flatten().detach()
    assert expected.min() > 1e-3
    torch.testing.assert_close(distance, expected)


def test_gray_image_counts_as_three_equal_channels(case):
    _, _, network, library = case
    prediction, image = two_batches(channels=1)
    distance = lpips_distance(prediction, image, network)
    expected = library(prediction.repeat(1, 3, 1, 1), image.repeat(1, 3, 1, 1), normalize=True).flatten().detach()
    torch.testing.assert_close(distance, expected)


def test_distance_of_an_image_to_itself_is_zero(case):
    _, _, network, _ = case
    image, _ = two_batches()
    assert torch.count_nonzero(lpips_distance(image, image, network)) == 0


def test_smallest_side_is_the_one_below_which_the_network_fails(case):
    net, _, network, _ = case
    smallest = {"alex": 31, "vgg": 16}[net]
    assert lpips_distance(*two_batches(size=(smallest, smallest)), network).min() > 0
    with pytest.raises(ValueError, match=f"needs at least {smallest} pixels per side"):
        lpips_distance(*two_batches(size=(smallest - 1, 64)), network)
    with pytest.raises(RuntimeError):
        network(*two_batches(size=(smallest - 1, 64)))


def test_shapes_that_differ_are_refused(case):
    _, _, network, _ = case
    image, _ = two_batches()
    with pytest.raises(ValueError, match=r"\(2, 3, 40, 48\) and \(2, 1, 40, 48\): both must be"):
        lpips_distance(image, image[:, :1], network)


def test_weights_with_another_checksum_are_refused(case):
    net, path, _, _ = case
    expected = pretrained.KNOWN[ARCHITECTURES[net]].sha256
    with pytest.raises(ValueError, match=f"have SHA-256 {sha256_of(path)}, expected {expected}"):
        load_lpips(net, path)


def test_missing_weights_are_named_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDFUSION_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match=r"alexnet are not on this machine.*medfusion weights fetch alexnet"):
        load_lpips()


def test_file_of_another_network_is_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(ValueError, match=r"other\.pth are not those of torchvision's alexnet"):
        load_lpips("alex", path, sha256_of(path))


def test_unknown_backbone_is_refused():
    with pytest.raises(ValueError, match="net is 'squeeze': LPIPS is calibrated for alex, vgg"):
        load_lpips("squeeze")
