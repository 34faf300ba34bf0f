import pytest
import torch
from torch import nn
from torchmetrics.functional.image import structural_similarity_index_measure

from medfusion_monai.losses.perceptual import StageDistance
from medfusion_monai.losses.reconstruction import ReconstructionLoss, image_ssim, structural_similarity
from medfusion_monai.networks.autoencoder import AutoencoderOutput, DiagonalGaussian

SHAPE, LOW_SHAPE = (2, 1, 24, 16), (2, 1, 12, 8)
VALUES = 24 * 16


class StubDistance(nn.Module):
    """Stands for LPIPS: the mean squared difference, one value an image."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, prediction, image):
        self.seen.append((prediction, image))
        return (prediction - image).square().mean(dim=(1, 2, 3), keepdim=True)


@pytest.fixture
def distance(monkeypatch):
    stub = StubDistance()
    monkeypatch.setattr("medfusion_monai.losses.reconstruction.load_perceptual_loss", lambda path: stub)
    return stub


@pytest.fixture
def image():
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def output():
    source = torch.Generator().manual_seed(1)
    full, low = (torch.rand(shape, generator=source) * 2 - 1 for shape in (SHAPE, LOW_SHAPE))
    return AutoencoderOutput(full, low, DiagonalGaussian(torch.randn(2, 4, 3, 2, generator=source)))


def perfect(image, offset=0.0):
    """Return an output without error, or with the same error everywhere."""
    low = image[:, :, 1::2, 1::2]  # what nearest-exact picks
    return AutoencoderOutput(image + offset, low + offset, DiagonalGaussian(torch.zeros(2, 4, 3, 2)))


def ssim_by_torchmetrics(prediction, image):
    """Return SSIM (B, C) where the window is inside the image; torchmetrics' mean includes a mirrored border."""
    _, values = structural_similarity_index_measure(prediction, image, data_range=1.0, return_full_image=True)
    return values[..., 5:-5, 5:-5].mean(dim=(2, 3))


def make_loss(**keywords):
    return ReconstructionLoss(**{"perceptual_weight": 0.0, "ssim_window": 7} | keywords)


def test_perfect_output_costs_nothing(image, distance):
    terms = make_loss(perceptual_weight=1.0, perceptual_weights_file="vgg")(perfect(image), image)
    assert terms.keys() == {"loss", "pixel", "ssim", "perceptual", "pixel_low", "ssim_low", "perceptual_low", "kl"}
    for name, value in terms.items():
        assert value.item() == pytest.approx(0.0, abs=1e-6), name


@pytest.mark.parametrize(("pixel_loss", "expected"), [("l1", 0.5), ("mse", 0.25)])
def test_pixel_terms_have_their_closed_form(image, pixel_loss, expected):
    summed = make_loss(pixel_loss=pixel_loss, reduction="sum")(perfect(image, 0.5), image)
    assert summed["pixel"].item() == pytest.approx(expected * VALUES, rel=1e-5)
    assert summed["pixel_low"].item() == pytest.approx(expected * VALUES / 4, rel=1e-5)
    mean = make_loss(pixel_loss=pixel_loss)(perfect(image, 0.5), image)
    assert mean["pixel"].item() == pytest.approx(expected, rel=1e-5)


def test_low_resolution_target_is_nearest_exact(image, output):
    expected = (output.reconstruction_low - image[:, :, 1::2, 1::2]).abs().sum() / 2
    terms = make_loss(reduction="sum")(output, image)
    torch.testing.assert_close(terms["pixel_low"], expected)


def test_ssim_term_is_one_minus_ssim_at_each_pixel(image, output):
    terms = make_loss(reduction="sum")(output, image)
    expected = VALUES * (1 - image_ssim(output.reconstruction, image, 7)).mean()
    torch.testing.assert_close(terms["ssim"], expected)


def test_kl_term_is_the_weighted_divergence(image, output):
    terms = make_loss(reduction="sum", kl_weight=0.1)(output, image)
    torch.testing.assert_close(terms["kl"], 0.1 * output.posterior.kl())


def test_loss_is_the_sum_of_its_terms(image, output, distance):
    terms = make_loss(perceptual_weight=2.0, perceptual_weights_file="vgg", kl_weight=0.1)(output, image)
    torch.testing.assert_close(terms.pop("loss"), sum(terms.values()))
    assert len(terms) == 7


def test_mean_is_the_sum_over_the_values_of_an_image_kl_included(image, output, distance):
    keywords = {"perceptual_weight": 1.0, "perceptual_weights_file": "vgg", "kl_weight": 0.1}
    summed = make_loss(reduction="sum", **keywords)(output, image)
    mean = make_loss(reduction="mean", **keywords)(output, image)
    assert summed["kl"] > 0
    for name, value in summed.items():
        torch.testing.assert_close(mean[name], value / VALUES, msg=name)


@pytest.mark.parametrize(
    ("weight", "scaled"),
    [
        ("pixel_weight", {"pixel", "pixel_low"}),
        ("ssim_weight", {"ssim", "ssim_low"}),
        ("perceptual_weight", {"perceptual", "perceptual_low"}),
        ("low_weight", {"pixel_low", "ssim_low", "perceptual_low"}),
        ("kl_weight", {"kl"}),
    ],
)
def test_each_weight_scales_its_term_only(image, output, distance, weight, scaled):
    ones = {f"{name}_weight": 1.0 for name in ("pixel", "ssim", "perceptual", "low", "kl")}
    before = make_loss(perceptual_weights_file="vgg", **ones)(output, image)
    after = make_loss(perceptual_weights_file="vgg", **ones | {weight: 3.0})(output, image)
    for name in before.keys() - {"loss"}:
        assert before[name] > 0
        assert after[name].item() == pytest.approx((3 if name in scaled else 1) * before[name].item(), rel=1e-5), name


def test_terms_of_the_low_resolution_are_left_out_without_its_output(image, output):
    terms = make_loss()(output._replace(reconstruction_low=None), image)
    assert terms.keys() == {"loss", "pixel", "ssim", "kl"}


@pytest.mark.parametrize("name", ["autoencoder_gray_4ch", "autoencoder_rgb_8ch"])
def test_published_loss_is_reproduced(name, vectors, relative_error):
    tensors, _ = vectors(name)
    posterior = DiagonalGaussian(torch.cat([tensors["mean"], tensors["logvar"]], dim=1))
    output = AutoencoderOutput(tensors["recon"], tensors["recon_low_0"], posterior)
    loss = ReconstructionLoss(reduction="sum", perceptual_weight=0.0, kl_weight=0.0)(output, tensors["x"])["loss"]
    assert relative_error(loss, tensors["rec_loss_l1_ssim"]) < 1e-5


def test_perceptual_distance_counts_at_each_pixel(image, output, distance):
    terms = make_loss(perceptual_weight=2.0, perceptual_weights_file="vgg", reduction="sum")(output, image)
    expected = 2.0 * VALUES * (output.reconstruction - image).square().mean()
    torch.testing.assert_close(terms["perceptual"], expected)


def test_gray_images_are_repeated_for_the_perceptual_term(image, output, distance):
    make_loss(perceptual_weight=1.0, perceptual_weights_file="vgg")(output, image)
    prediction, target = distance.seen[0]
    assert torch.equal(prediction, output.reconstruction.expand(2, 3, 24, 16))
    assert torch.equal(target, image.expand(2, 3, 24, 16))


def test_colour_images_are_seen_as_they_are_by_the_perceptual_term(distance):
    image = torch.rand(2, 3, 16, 16)
    make_loss(perceptual_weight=1.0, perceptual_weights_file="vgg")(perfect(image), image)
    assert torch.equal(distance.seen[0][1], image)


def test_perceptual_term_without_a_file_compares_by_stages_of_efficientnet(image, output):
    loss = make_loss(perceptual_weight=1.0)
    assert loss.perceptual_network == "efficientnet-lite0"
    rgb = [batch.repeat(1, 3 // image.shape[1], 1, 1) for batch in (output.reconstruction, image)]
    torch.testing.assert_close(loss(output, image)["perceptual"], StageDistance()(*rgb).mean())


def test_perceptual_term_with_weight_zero_needs_no_weights(image, output, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    loss = make_loss(perceptual_weight=0.0)
    assert loss.perceptual_network is None
    assert not [name for name in loss(output, image) if "perceptual" in name]


@pytest.mark.parametrize("keywords", [{"pixel_loss": "l2"}, {"reduction": "none"}])
def test_unknown_choice_is_refused_by_name(keywords):
    ((argument, value),) = keywords.items()
    with pytest.raises(ValueError, match=f"{argument} must be .* received '{value}'"):
        make_loss(**keywords)


def test_ssim_of_an_image_with_itself_is_one(image):
    torch.testing.assert_close(structural_similarity(image / 2 + 0.5, image / 2 + 0.5), torch.ones(2))


@pytest.mark.parametrize(("a", "b"), [(0.2, 0.7), (0.0, 1.0), (0.5, 0.51)])
def test_ssim_of_even_images_has_its_closed_form(a, b):
    expected = (2 * a * b + 0.01**2) / (a * a + b * b + 0.01**2)
    images = [torch.full((1, 1, 16, 16), value) for value in (a, b)]
    assert structural_similarity(*images).item() == pytest.approx(expected, rel=1e-3)


def test_ssim_is_that_of_torchmetrics():
    source = torch.Generator().manual_seed(0)
    image = torch.rand(3, 3, 32, 40, generator=source)
    prediction = (image + 0.3 * torch.randn(image.shape, generator=source)).clamp(0, 1)
    expected = ssim_by_torchmetrics(prediction, image).mean(dim=1)
    assert 0.1 < expected.min() < expected.max() < 0.9
    torch.testing.assert_close(structural_similarity(prediction, image), expected, rtol=1e-4, atol=1e-5)


def test_ssim_of_a_channel_counts_as_at_least_zero():
    image = torch.rand(1, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    prediction = torch.cat([image[:, :1], 1 - image[:, 1:]], dim=1)  # the second channel is the negative
    assert ssim_by_torchmetrics(prediction, image)[0, 1] < -0.5
    assert structural_similarity(prediction, image).item() == pytest.approx(0.5, abs=1e-5)


def test_image_ssim_cuts_values_outside_the_range(image):
    expected = ssim_by_torchmetrics((3 * image).clamp(-1, 1) / 2 + 0.5, image / 2 + 0.5).mean(dim=1)
    torch.testing.assert_close(image_ssim(3 * image, image), expected, rtol=1e-4, atol=1e-5)


def test_window_that_is_larger_than_the_low_resolution_image_is_refused(image, output):
    with pytest.raises(ValueError, match=r"window of 11 does not fit into images of \(12, 8\)"):
        make_loss(ssim_window=11)(output, image)
