"""The measured ratio, compared with the drawn one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medfusion_monai.demo.phantoms.draw_chest import draw_chest_phantom
from medfusion_monai.demo.phantoms.measure_chest import measure_cardiothoracic_ratio
from medfusion_monai.demo.phantoms.measurements import class_agreement


def _draw(number, size, first_seed=50_000):
    drawn = [draw_chest_phantom(first_seed + index, index % 2, size) for index in range(number)]
    ratios = np.array([truth["cardiothoracic_ratio"] for _, truth in drawn])
    return np.stack([image for image, _ in drawn]), ratios, np.arange(number) % 2


def _blur(images, sigma):
    taps = torch.exp(-(torch.arange(-4, 5) ** 2) / (2 * sigma**2))
    taps = taps / taps.sum()
    blurred = F.conv2d(F.pad(torch.from_numpy(images), (4, 4, 4, 4), mode="replicate"), taps.view(1, 1, 1, 9))
    return F.conv2d(blurred, taps.view(1, 1, 9, 1)).numpy()


@pytest.mark.parametrize(("number", "size"), [(1000, 64), (300, 128), (40, 256), (100, (96, 64))])
def test_fresh_phantoms_are_measured_to_two_hundredths(number, size):
    images, ratios, labels = _draw(number, size)
    measured = measure_cardiothoracic_ratio(images)
    assert np.abs(measured - ratios).mean() < 0.02
    assert min(class_agreement(images, labels).values()) >= 0.99


def test_blur_and_noise_are_borne():
    images, _, labels = _draw(400, 64)
    noisy = _blur(images, 0.7) + np.random.default_rng(0).normal(0, 0.01, images.shape)
    assert min(class_agreement(noisy, labels).values()) >= 0.97


@pytest.mark.parametrize(("scale", "offset"), [(0.4, 0.3), (0.7, 0.0), (0.5, 0.5)])
def test_contrast_and_brightness_do_not_matter(scale, offset):
    images, _, _ = _draw(20, 64)
    expected = measure_cardiothoracic_ratio(images)
    np.testing.assert_allclose(measure_cardiothoracic_ratio(images * scale + offset), expected, atol=0.002)


def test_images_without_a_chest_are_not_measured():
    rng = np.random.default_rng(0)
    empty = np.stack([np.zeros((1, 64, 64)), np.full((1, 64, 64), 0.7), np.full((1, 64, 64), np.nan)])
    assert np.isnan(measure_cardiothoracic_ratio(empty)).all()
    noise = measure_cardiothoracic_ratio(rng.normal(0.5, 0.1, (100, 1, 64, 64)))
    assert np.isnan(noise).mean() > 0.95


def test_tensor_and_array_give_the_same():
    images, _, labels = _draw(4, 64)
    tensor = torch.from_numpy(images)
    np.testing.assert_allclose(measure_cardiothoracic_ratio(tensor), measure_cardiothoracic_ratio(images))
    assert class_agreement(tensor, torch.from_numpy(labels)) == {0: 1.0, 1: 1.0}


def test_swapped_labels_and_unmeasured_images_disagree():
    images, _, labels = _draw(10, 64)
    assert class_agreement(images, 1 - labels) == {0: 0.0, 1: 0.0}
    images[0] = 0
    assert class_agreement(images, labels) == {0: 0.8, 1: 1.0}


def test_wrong_shapes_and_labels_are_refused():
    with pytest.raises(ValueError, match=r"instead of \(N, 1, H, W\)"):
        measure_cardiothoracic_ratio(np.zeros((3, 64, 64)))
    with pytest.raises(ValueError, match="2 labels for 3 images"):
        class_agreement(np.zeros((3, 1, 64, 64)), [0, 1])
