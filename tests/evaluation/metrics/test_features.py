import hashlib

import pytest
import torch
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3 as library
from torchvision import models
from torchvision.transforms import functional

from medfusion_monai.evaluation.metrics.feature_networks import (
    FeatureExtractor,
    InceptionFeatures,
    PhantomFeatures,
    TorchScriptFeatures,
    TorchvisionFeatures,
)
from medfusion_monai.evaluation.metrics.features import load_extractor
from medfusion_monai.evaluation.metrics.phantom_network import PhantomNetwork
from medfusion_monai.weights import pretrained
from medfusion_monai.weights.efficientnet_lite import load_efficientnet_lite
from medfusion_monai.weights.state_dict import save_weights


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def random_images(channels=3, size=(40, 48)):
    """Make images that 8 bits hold exactly."""
    return torch.randint(256, (2, channels, *size), generator=torch.Generator().manual_seed(0)) / 255


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory):
    """Write random weights in torch-fidelity's form."""
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        network = library.FeatureExtractorInceptionV3("random", ["2048"])
    for name, parameter in network.named_parameters():
        if name.endswith("conv.weight"):
            nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def inception(inception_file):
    return InceptionFeatures(inception_file, sha256=sha256_of(inception_file))


@pytest.fixture(scope="session")
def published(inception_file):
    path = str(inception_file)
    return library.FeatureExtractorInceptionV3("there", ["2048"], feature_extractor_weights_path=path)


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("resnet") / "resnet18.pth"
    torch.manual_seed(0)
    torch.save(models.resnet18(num_classes=14).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def resnet(resnet_file):
    return TorchvisionFeatures("resnet18", resnet_file)


def script(path, network):
    torch.jit.script(network).save(str(path))
    return path


class Means(nn.Module):
    """The mean of each channel."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.mean(dim=(2, 3))


class Flat(nn.Module):
    """All values of an image."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.flatten(1)


class Fixed(nn.Module):
    """Takes only images of 224 pixels."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.reshape(-1, 3, 224, 224).mean(dim=(2, 3))


class GrayCorner(nn.Module):
    """A convolution that takes only gray images."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 5, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.convolution(image)[:, :, 0, 0]


def test_inception_features_are_those_of_torch_fidelity(inception, published):
    image = random_images()
    features = inception(image)
    (expected_features,) = published((image * 255).round().to(torch.uint8))
    assert features.std() > 1e-3
    torch.testing.assert_close(features, expected_features)


def test_inception_rounds_to_eight_bits(inception, published):
    image = random_images(size=(20, 20))[:1]
    features = inception((image + 0.4 / 255).clamp(max=1.0))
    torch.testing.assert_close(features, published((image * 255).round().to(torch.uint8))[0])


def test_inception_of_gray_images_is_that_of_repeated_ones(inception):
    image = random_images(channels=1, size=(20, 20))[:1]
    torch.testing.assert_close(inception(image), inception(image.repeat(1, 3, 1, 1)))


def test_inception_with_other_weights_does_not_pass_for_the_published_one(inception, inception_file):
    assert inception.describe() == {
        "name": "inception-v3, custom weights",
        "sha256": sha256_of(inception_file),
        "dimensions": 2048,
        "resize": "bilinear to 299x299, as in TensorFlow 1",
        "is_inception": False,
    }


def test_inception_with_the_published_checksum_is_found_and_says_so(inception_file, tmp_path, monkeypatch):
    known = pretrained.KNOWN["inception-v3"]._replace(file=inception_file.name, sha256=sha256_of(inception_file))
    monkeypatch.setitem(pretrained.KNOWN, "inception-v3", known)
    monkeypatch.setenv("MEDFUSION_WEIGHTS", str(inception_file.parent))
    extractor = load_extractor("inception")
    assert (extractor.name, extractor.is_inception) == ("inception-v3", True)


def test_inception_refuses_another_checksum(resnet_file):
    expected = pretrained.KNOWN["inception-v3"].sha256
    with pytest.raises(ValueError, match=rf"have SHA-256 {sha256_of(resnet_file)}, expected {expected}\..*fetch"):
        InceptionFeatures(resnet_file)


def test_inception_refuses_weights_of_another_network(resnet_file):
    with pytest.raises(ValueError, match=r"resnet18\.pth do not fit torch-fidelity's Inception-v3: .*Missing key"):
        InceptionFeatures(resnet_file, sha256=sha256_of(resnet_file))


def test_inception_executes_nothing_of_a_file(tmp_path):
    path = tmp_path / "code.pth"
    torch.save({"code": print}, path)
    with pytest.raises(ValueError, match="not a plain file of tensors"):
        InceptionFeatures(path, sha256=sha256_of(path))


def test_missing_inception_says_how_it_comes_here(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDFUSION_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match=r"weights of inception-v3 are not on this machine.*weights add"):
        load_extractor("inception")


def test_torchvision_features_are_what_the_last_layer_sees(resnet, resnet_file):
    classifier = models.resnet18(num_classes=14)
    classifier.load_state_dict(torch.load(resnet_file))
    seen = []
    classifier.fc.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    image = random_images()
    resized = functional.resize(image, [224, 224], antialias=True)
    classifier.eval()(functional.normalize(resized, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.testing.assert_close(resnet(image), seen[0].detach())
    assert resnet.dimensions == seen[0].shape[1] == 512
    assert (resnet.name, resnet.sha256) == ("torchvision resnet18", sha256_of(resnet_file))


def test_torchvision_densenet_with_the_names_of_older_files_is_read(tmp_path):
    torch.manual_seed(0)
    network = models.densenet121(num_classes=2)
    old = {
        name.replace("norm1", "norm.1")
        .replace("norm2", "norm.2")
        .replace("conv1", "conv.1")
        .replace("conv2", "conv.2"): value
        for name, value in network.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "old.pth")
    extractor = TorchvisionFeatures("densenet121", tmp_path / "old.pth")
    weight = extractor.network.features.denseblock1.denselayer1.conv2.weight
    assert torch.equal(weight, network.features.denseblock1.denselayer1.conv2.weight)
    assert extractor.dimensions == 1024


def test_unknown_architecture_is_answered_with_near_ones(resnet_file):
    with pytest.raises(ValueError, match="no classifier 'resnet81'. Similar names: .*resnet18"):
        TorchvisionFeatures("resnet81", resnet_file)


def test_architecture_without_a_last_linear_layer_is_refused(resnet_file):
    with pytest.raises(ValueError, match="squeezenet1_1 has no linear layer"):
        TorchvisionFeatures("squeezenet1_1", resnet_file)


def test_weights_of_another_architecture_are_refused(resnet_file):
    with pytest.raises(ValueError, match=r"resnet18\.pth do not fit torchvision's resnet34: .*Missing key"):
        TorchvisionFeatures("resnet34", resnet_file)


def test_torchvision_refuses_another_checksum_than_the_one_named(resnet_file):
    with pytest.raises(ValueError, match=f"have SHA-256 {sha256_of(resnet_file)}, expected 00"):
        load_extractor(f"torchvision:resnet18:{resnet_file}", sha256="00")


def test_torchscript_features_are_the_output_of_the_file(tmp_path):
    extractor = TorchScriptFeatures(script(tmp_path / "means.pt", Means()))
    image = random_images()
    torch.testing.assert_close(extractor(image), image.mean(dim=(2, 3)))
    assert (extractor.dimensions, extractor.name, extractor.resize) == (3, "TorchScript means.pt", "none")


def test_torchscript_resizes_to_the_size_that_is_named(tmp_path):
    extractor = TorchScriptFeatures(script(tmp_path / "flat.pt", Flat()), size=8)
    image = random_images()
    expected = functional.resize(image, [8, 8], antialias=True).flatten(1)
    torch.testing.assert_close(extractor(image), expected)
    assert extractor.dimensions == 192


@pytest.mark.parametrize(
    ("module", "words"), [(Flat(), r"returned \(2, 12288\) for images of"), (Fixed(), "fails on images of")]
)
def test_torchscript_that_wants_another_size_is_told(module, words, tmp_path):
    extractor = TorchScriptFeatures(script(tmp_path / "module.pt", module))
    with pytest.raises(ValueError, match=rf"TorchScript module\.pt {words} \(3, 64, 64\).*Build a resize into the"):
        extractor(torch.rand(2, 3, 64, 64))


def test_torchscript_of_gray_images_takes_them_alone(tmp_path):
    extractor = TorchScriptFeatures(script(tmp_path / "gray.pt", GrayCorner()))
    assert extractor(random_images(channels=1)).shape == (2, 5)
    with pytest.raises(ValueError, match=r"images have 3 channels, but TorchScript gray\.pt takes gray images"):
        extractor(random_images())


def test_torchscript_that_gives_maps_is_refused(tmp_path):
    path = script(tmp_path / "maps.pt", nn.Conv2d(3, 4, 1))
    with pytest.raises(
        ValueError, match=r"to floats \(2, D\), but it returns torch.float32 of shape \(2, 4, 224, 224\)"
    ):
        TorchScriptFeatures(path)


def test_torchscript_that_fails_is_refused(tmp_path):
    path = script(tmp_path / "linear.pt", nn.Linear(7, 4))
    with pytest.raises(ValueError, match=r"linear\.pt must map images .*, but it fails: "):
        TorchScriptFeatures(path)


def test_state_dict_is_no_torchscript(resnet_file):
    with pytest.raises(ValueError, match=r"resnet18\.pth cannot be read as TorchScript"):
        TorchScriptFeatures(resnet_file)


def test_phantom_features_are_those_of_the_network_in_the_file(tmp_path):
    torch.manual_seed(0)
    network = PhantomNetwork(1, 9, "cxr")
    save_weights(network, tmp_path / "phantoms.pt")
    extractor = load_extractor(f"phantoms:{tmp_path / 'phantoms.pt'}")
    assert isinstance(extractor, PhantomFeatures)
    image = random_images(channels=1)
    torch.testing.assert_close(extractor(image), network(image).detach())
    assert extractor.name == "phantoms-cxr"
    assert extractor.sha256 == sha256_of(tmp_path / "phantoms.pt")


@pytest.fixture(scope="module")
def efficientnet():
    return load_extractor("efficientnet-lite0")


def test_efficientnet_features_are_what_its_classes_are_computed_from(efficientnet):
    network = load_efficientnet_lite()
    image = random_images(size=(224, 224))
    features = efficientnet(image)
    assert features.shape == (2, efficientnet.dimensions) == (2, 1280)
    torch.testing.assert_close(network.classifier(features), network(image * 2 - 1), rtol=1e-4, atol=1e-4)


def test_efficientnet_takes_gray_images_of_any_size_and_says_what_it_is(efficientnet):
    gray = random_images(channels=1)
    resized = functional.resize(gray, [224, 224], antialias=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(efficientnet(gray), efficientnet(resized), rtol=1e-4, atol=1e-4)
    described = efficientnet.describe()
    assert described["name"] == "efficientnet-lite0"
    assert described["sha256"].startswith("579344248a93")
    assert described["is_inception"] is False


def test_auto_is_inception_where_its_file_is_and_efficientnet_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv(pretrained.FOLDER_VARIABLE, str(tmp_path))
    assert load_extractor("auto").name == "efficientnet-lite0"
    (tmp_path / pretrained.KNOWN["inception-v3"].file).write_bytes(b"cut off")
    with pytest.raises(ValueError, match="inception.* have SHA-256"):  # a damaged file is not passed over
        load_extractor("auto")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 8, 8), r"images have shape \(3, 8, 8\): give \(B, C, H, W\)"),
        (torch.zeros(1, 2, 8, 8), r"images have shape \(1, 2, 8, 8\)"),
        (torch.full((1, 3, 8, 8), 255.0), "values from 255 to 255"),
        (torch.full((1, 3, 8, 8), -1.0), "values from -1 to -1"),
        (torch.full((1, 3, 8, 8), torch.nan), "values from nan to nan"),
    ],
)
def test_images_of_another_shape_or_range_are_refused(resnet, image, message):
    with pytest.raises(ValueError, match=message):
        resnet(image)


def test_networks_are_frozen_and_stay_in_evaluation_mode(inception, resnet):
    for extractor in (inception, resnet):
        extractor.train()
        assert not any(module.training for module in extractor.modules())
        assert not any(parameter.requires_grad for parameter in extractor.parameters())
    assert not resnet(random_images().requires_grad_()).requires_grad


@pytest.mark.parametrize(
    "specification", ["vgg", "inception:", "torchvision:resnet18", "torchvision::x", "torchscript", "phantoms:"]
)
def test_unknown_text_lists_what_there_is(specification):
    with pytest.raises(
        ValueError,
        match=rf"features '{specification}' are unknown: use auto, efficientnet-lite0, inception",
    ):
        load_extractor(specification)


def test_text_names_the_kind_and_the_file(tmp_path, resnet_file, inception_file):
    means = script(tmp_path / "means.pt", Means())
    assert isinstance(load_extractor(f"torchscript:{means}"), TorchScriptFeatures)
    assert load_extractor(f"torchvision:resnet18:{resnet_file}").name == "torchvision resnet18"
    assert load_extractor(f"inception:{inception_file}", sha256_of(inception_file)).dimensions == 2048


def test_extractor_is_given_back_as_it_is(resnet):
    assert load_extractor(resnet) is resnet


def test_module_without_the_attributes_is_refused():
    with pytest.raises(ValueError, match="Linear is not a feature extractor: it lacks name, sha256, dimensions"):
        load_extractor(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="FeatureExtractor is not a feature extractor: it lacks name"):
        load_extractor(FeatureExtractor())
