import pytest
import torch
from torch.nn import functional as F
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as reference
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.image import MultiScaleStructuralSimilarityIndexMeasure

from medfusion_monai.evaluation.metrics import similarity
from medfusion_monai.evaluation.metrics.similarity import (
    SCALE_WEIGHTS,
    diversity,
    ms_ssim,
    ms_ssim_as_in_paper,
    ms_ssim_window,
    psnr,
    ssim,
)


def pair(size, noise=0.1):
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.interpolate(
        torch.rand(3, 1, size // 8, size // 8, generator=generator), size=(size, size)
    )
    return (image + noise * torch.randn(image.shape, generator=generator)).clamp(0, 1), image


def test_equal_images_have_one():
    image = pair(64)[1]
    assert torch.allclose(ms_ssim(image, image), torch.ones(3), atol=1e-5)


def by_definition(prediction, image, reflected):
    """MS-SSIM in float64; ``reflected`` counts windows over a reflected border at the coarsest scale."""
    offsets = torch.arange(11).double() - 5
    line = (-(offsets**2) / (2 * 1.5**2)).exp()
    line /= line.sum()
    channels = image.shape[1]
    window = torch.outer(line, line).expand(channels, 1, 11, 11)
    x, y, product = prediction.double(), image.double(), 1.0
    for scale, weight in enumerate(SCALE_WEIGHTS):
        last = scale == len(SCALE_WEIGHTS) - 1
        a, b = (F.pad(each, (5,) * 4, mode="reflect") if last and reflected else each for each in (x, y))
        mean_a, mean_b, aa, bb, ab = (F.conv2d(each, window, groups=channels) for each in (a, b, a * a, b * b, a * b))
        values = (2 * (ab - mean_a * mean_b) + 9e-4) / (aa - mean_a**2 + bb - mean_b**2 + 9e-4)
        if last:
            values = values * (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
        product = product * values.flatten(1).mean(dim=1).relu() ** weight
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return product


@pytest.mark.parametrize("channels", [1, 3])
def test_only_the_border_of_the_coarsest_scale_distinguishes_ours_from_torchmetrics(channels):
    prediction, image = (each.expand(-1, channels, -1, -1) * fundus_mask(192) for each in pair(192))
    colours = torch.tensor([1.0, 0.6, 0.3])[:channels, None, None]
    prediction, image = prediction * colours, image * colours
    theirs = reference(prediction, image, data_range=1.0, betas=SCALE_WEIGHTS, reduction="none")
    ours = ms_ssim(prediction, image)
    assert torch.allclose(ours.double(), by_definition(prediction, image, reflected=False), atol=1e-5)
    assert torch.allclose(theirs.double(), by_definition(prediction, image, reflected=True), atol=1e-5)
    assert 1e-4 < (ours - theirs).abs().max() < 5e-3


def fundus_mask(size):
    axis = torch.linspace(-1, 1, size)
    return (axis[:, None] ** 2 + axis**2 < 0.9).float()


def test_ms_ssim_of_the_paper_is_that_of_torchmetrics_pair_by_pair():
    prediction, image = (0.1 * each + 0.1 for each in pair(192))
    metric = MultiScaleStructuralSimilarityIndexMeasure()  # as the paper's script makes it
    expected = [metric(prediction[i : i + 1], image[i : i + 1]) for i in range(3)]
    values = ms_ssim_as_in_paper(prediction, image)
    assert values.tolist() == pytest.approx([float(value) for value in expected], rel=1e-6)
    assert (values < ms_ssim(prediction, image) - 0.01).all()  # their contrast is a tenth of the full range


def test_more_noise_means_less_similarity():
    values = [ms_ssim(*pair(64, noise)).mean() for noise in (0.02, 0.1, 0.3)]
    assert values[0] > values[1] > values[2]


@pytest.mark.parametrize(("size", "window"), [(48, 3), (64, 3), (80, 5), (128, 7), (176, 11), (256, 11), (512, 11)])
def test_window_is_the_largest_that_fits(size, window):
    assert ms_ssim_window(size, 2 * size) == window


def test_small_images_are_refused():
    with pytest.raises(ValueError, match="48x48"):
        ms_ssim_window(40, 64)


def test_ssim_agrees_with_torchmetrics():
    prediction, image = pair(64)
    _, values = structural_similarity_index_measure(
        prediction, image, data_range=1.0, reduction="none", return_full_image=True
    )
    expected = values[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))  # torchmetrics pads, and its mean counts the border too
    assert torch.allclose(ssim(prediction, image), expected, atol=1e-5)


def test_psnr_agrees_with_torchmetrics():
    prediction, image = pair(64)
    expected = peak_signal_noise_ratio(prediction, image, data_range=1.0, dim=(1, 2, 3), reduction="none")
    assert torch.allclose(psnr(prediction, image), expected, atol=1e-4)


def test_error_of_a_tenth_is_20_decibels():
    image = torch.full((2, 1, 8, 8), 0.5)
    assert psnr(image + 0.1, image).tolist() == pytest.approx([20, 20], rel=1e-5)
    assert (psnr(image, image) == torch.inf).all()


def test_diversity_is_the_mean_over_all_pairs_of_a_small_set():
    images = pair(64, noise=0.3)[0]
    expected = sum(ms_ssim(images[i : i + 1], images[j : j + 1]) for i, j in ((0, 1), (0, 2), (1, 2))) / 3
    for batch_size in (1, 2, 32):
        figure = diversity(images, batch_size=batch_size)
        assert figure.value == pytest.approx(expected.item(), rel=1e-5)
    assert figure.low < figure.value < figure.high
    assert figure.note == "3 pairs of 3 images"


@pytest.mark.parametrize(("count", "pairs", "drawn"), [(7, 500, 21), (300, 500, 500)])
def test_pairs_are_different_and_of_different_images(count, pairs, drawn):
    numbers = similarity._random_pairs(count, pairs, seed=0)
    assert len({tuple(sorted(pair)) for pair in numbers.tolist()}) == drawn
    assert (numbers[:, 0] != numbers[:, 1]).all()
    assert numbers.min() == 0
    assert numbers.max() >= count - 2


def test_every_image_is_in_as_many_pairs_as_the_others():
    numbers = similarity._random_pairs(20, 95, seed=0).flatten()
    assert numbers.bincount(minlength=20).double().mean() == pytest.approx(9.5)
    assert numbers.bincount(minlength=20).min() >= 3


def test_noisier_copies_are_a_more_diverse_set():
    image = pair(64)[1][:1]
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(12, 1, 64, 64, generator=generator)
    values = [diversity((image + scale * noise).clamp(0, 1)).value for scale in (0.02, 0.1, 0.3)]
    assert values[0] > values[1] > values[2]


def test_equal_images_have_no_diversity_and_say_so():
    figure = diversity(torch.rand(1, 1, 48, 48).expand(4, 1, 48, 48))
    assert figure.value == pytest.approx(1, abs=1e-4)
    assert "all 6 values are equal" in figure.note


def test_images_are_asked_for_one_by_one():
    images = pair(64, noise=0.3)[0]
    assert diversity(list(images)) == diversity(images)


def test_small_images_and_single_ones_have_no_diversity():
    assert diversity(torch.rand(1, 1, 64, 64)) == (None, None, None, "diversity needs at least 2 images, received 1")
    figure = diversity(torch.rand(5, 1, 40, 64))
    assert figure.value is None
    assert "48x48" in figure.note
