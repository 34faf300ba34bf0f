import pytest
import torch
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as reference

from medfusion_monai.metrics.similarity import SCALE_WEIGHTS, ms_ssim, ms_ssim_window


def pair(size, noise=0.1):
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.interpolate(
        torch.rand(3, 1, size // 8, size // 8, generator=generator), size=(size, size)
    )
    return (image + noise * torch.randn(image.shape, generator=generator)).clamp(0, 1), image


def test_equal_images_have_one():
    image = pair(64)[1]
    assert torch.allclose(ms_ssim(image, image), torch.ones(3), atol=1e-5)


def test_full_window_agrees_with_torchmetrics():
    prediction, image = pair(192)
    # torchmetrics pads; its window of sigma 1.5 has 11 pixels
    expected = reference(prediction, image, data_range=1.0, betas=SCALE_WEIGHTS, reduction="none")
    assert torch.allclose(ms_ssim(prediction, image), expected, atol=5e-3)


def test_more_noise_means_less_similarity():
    values = [ms_ssim(*pair(64, noise)).mean() for noise in (0.02, 0.1, 0.3)]
    assert values[0] > values[1] > values[2]


@pytest.mark.parametrize(("size", "window"), [(48, 3), (64, 3), (80, 5), (128, 7), (176, 11), (256, 11), (512, 11)])
def test_window_is_the_largest_that_fits(size, window):
    assert ms_ssim_window(size, 2 * size) == window


def test_small_images_are_refused():
    with pytest.raises(ValueError, match="48x48"):
        ms_ssim_window(40, 64)
