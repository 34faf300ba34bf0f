"""Chest phantoms: the label is the drawn ratio, and nothing simpler reveals it."""

import numpy as np
import pytest

from medfusion_monai.demo.phantoms.draw_chest import draw_chest_phantom


@pytest.fixture(scope="module")
def sample():
    """Two hundred phantoms: images (N, 1, 64, 64), truths, labels."""
    drawn = [draw_chest_phantom(seed, seed % 2) for seed in range(200)]
    return np.stack([image for image, _ in drawn]), [truth for _, truth in drawn], np.arange(200) % 2


def _array(truths, key):
    return np.array([truth[key] for truth in truths])


def test_images_are_float_in_range_and_not_saturated(sample):
    images, _, _ = sample
    assert images.dtype == np.float32
    assert images.shape == (200, 1, 64, 64)
    assert images.min() >= 0
    assert images.max() <= 1
    assert (images == 1).mean() < 0.02


def test_phantom_is_a_function_of_its_seed():
    first, second = draw_chest_phantom(3, 1), draw_chest_phantom(3, 1)
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1]
    assert not np.array_equal(first[0], draw_chest_phantom(4, 1)[0])


def test_ratio_lies_on_the_side_of_the_label(sample):
    _, truths, labels = sample
    ratios = _array(truths, "cardiothoracic_ratio")
    assert ratios[labels == 0].min() >= 0.36
    assert ratios[labels == 0].max() <= 0.47
    assert ratios[labels == 1].min() >= 0.53
    assert ratios[labels == 1].max() <= 0.64
    np.testing.assert_allclose(_array(truths, "heart_width") / _array(truths, "thorax_width"), ratios)


def test_heart_width_alone_does_not_give_the_label(sample):
    _, truths, labels = sample
    widths = _array(truths, "heart_width")
    best = max(((widths > limit) == (labels == 1)).mean() for limit in widths)
    assert best < 0.88


def test_mean_brightness_does_not_give_the_label(sample):
    images, _, labels = sample
    means = images.mean((1, 2, 3))
    assert abs(means[labels == 0].mean() - means[labels == 1].mean()) < means.std()


def test_heart_is_bright_and_lungs_are_dark_where_the_truth_says(sample):
    images, truths, _ = sample
    for image, truth in zip(images[:40], truths, strict=False):
        profile = image[0, 30:42].mean(0)
        heart = profile[int(truth["heart_left"]) + 3 : int(truth["heart_right"]) - 3].mean()
        lung = profile[int(truth["thorax_left"]) + 2 : int(truth["heart_left"])].min()
        assert heart - lung > 0.2


def test_same_phantom_at_twice_the_size_is_the_same_anatomy():
    small, truth = draw_chest_phantom(5, 0, 64)
    large, large_truth = draw_chest_phantom(5, 0, 128)
    assert large_truth["cardiothoracic_ratio"] == truth["cardiothoracic_ratio"]
    assert large_truth["heart_width"] == pytest.approx(2 * truth["heart_width"])
    pooled = large.reshape(64, 2, 64, 2).mean((1, 3))
    assert np.abs(pooled - small[0]).mean() < 0.02


def test_size_may_be_oblong():
    image, truth = draw_chest_phantom(5, 0, (96, 64))
    assert image.shape == (1, 96, 64)
    assert truth["heart_width"] == pytest.approx(draw_chest_phantom(5, 0, 64)[1]["heart_width"])


def test_pixel_noise_is_faint():
    flat = draw_chest_phantom(0, 0, 256)[0][0]
    differences = flat[:, 1:] - flat[:, :-1]
    assert np.median(np.abs(differences)) / 0.6745 / np.sqrt(2) < 0.012


@pytest.mark.parametrize(("label", "size"), [(2, 64), (-1, 64), (0, 8)])
def test_unknown_label_and_tiny_size_are_refused(label, size):
    with pytest.raises(ValueError, match="label is|size is"):
        draw_chest_phantom(0, label, size)
