import pytest
import torch
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from medfusion_monai.losses.perceptual import load_perceptual_loss
from medfusion_monai.losses.reconstruction import ReconstructionLoss
from medfusion_monai.networks.autoencoder import AutoencoderOutput, DiagonalGaussian

RELUS = {"relu1_2": 3, "relu2_2": 8, "relu3_3": 15, "relu4_3": 22, "relu5_3": 29}


@pytest.fixture(scope="module")
def features():
    """Make the convolutions of torchvision's VGG-16 with random weights."""
    torch.manual_seed(0)
    network = make_layers(cfgs["D"])
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return network.requires_grad_(False)


@pytest.fixture(scope="module")
def weights_file(features, tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    torch.save(state | {"classifier.0.bias": torch.zeros(4096)}, path)  # the classifier is not looked at
    return path


@pytest.fixture(scope="module")
def loss(weights_file):
    return load_perceptual_loss(weights_file)


def independent_distance(features, prediction, image):
    """LPIPS without calibration by its definition, one value an image."""
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    a, b = (prediction - shift) / scale, (image - shift) / scale
    total = torch.zeros(len(image))
    for index, layer in enumerate(features):
        a, b = layer(a), layer(b)
        if index in RELUS.values():
            difference = nn.functional.normalize(a, dim=1) - nn.functional.normalize(b, dim=1)
            total += difference.square().sum(dim=1).mean(dim=(1, 2))
    return total


def two_batches(channels=3):
    source = torch.Generator().manual_seed(1)
    return [torch.rand(2, channels, 32, 48, generator=source) * 2 - 1 for _ in range(2)]


def test_distance_is_the_one_of_the_definition(loss, features):
    prediction, image = two_batches()
    distance = loss(prediction, image)
    assert distance.shape == (2, 1, 1, 1)
    assert distance.min() > 0.01
    expected = independent_distance(features, prediction, image)
    torch.testing.assert_close(distance.flatten(), expected, rtol=1e-4, atol=1e-5)


def test_distance_of_an_image_to_itself_is_zero(loss):
    _, image = two_batches()
    assert torch.count_nonzero(loss(image, image)) == 0


def test_perceptual_term_of_gray_images_is_the_distance_of_repeated_ones(weights_file, features):
    prediction, image = two_batches(channels=1)
    loss = ReconstructionLoss(pixel_weight=0.0, ssim_weight=0.0, kl_weight=0.0, perceptual_weights_file=weights_file)
    terms = loss(AutoencoderOutput(prediction, None, DiagonalGaussian(torch.zeros(2, 2, 1, 1))), image)
    expected = independent_distance(features, prediction.expand(2, 3, 32, 48), image.expand(2, 3, 32, 48)).mean()
    torch.testing.assert_close(terms["perceptual"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["loss"], expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_trainable_but_gradients_reach_the_prediction(loss):
    prediction, image = two_batches()
    assert not [name for name, parameter in loss.named_parameters() if parameter.requires_grad]
    assert not loss.training
    loss(prediction.requires_grad_(), image).sum().backward()
    assert torch.count_nonzero(prediction.grad) > 0


def test_missing_file_is_named_with_its_checksum_and_where_to_get_it(tmp_path):
    with pytest.raises(ValueError, match=r"no\.pth does not exist.*vgg16-397923af\.pth.*397923af"):
        load_perceptual_loss(tmp_path / "no.pth")


def test_loss_refuses_a_file_that_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"perceptual_weights_file .*no\.pth does not exist"):
        ReconstructionLoss(perceptual_weights_file=tmp_path / "no.pth")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("<html>not found</html>"),
        lambda path: torch.save(nn.Linear(2, 2).state_dict(), path),
    ],
    ids=["web page", "other network"],
)
def test_file_of_something_else_is_refused_by_name(tmp_path, write):
    path = tmp_path / "other.pth"
    write(path)
    with pytest.raises(ValueError, match=r"perceptual_weights_file .*other\.pth does not contain the VGG-16 weights"):
        load_perceptual_loss(path)
