"""Histology phantoms: the label is the number of lymphocytes, and nothing simpler reveals it."""

import numpy as np
import pytest

from medfusion_monai.demo.phantoms.draw_histology import EOSIN, HEMATOXYLIN, draw_histology_phantom


@pytest.fixture(scope="module")
def sample():
    """Three hundred phantoms: images (N, 3, 64, 64), truths, labels."""
    drawn = [draw_histology_phantom(seed, seed % 2) for seed in range(300)]
    return np.stack([image for image, _ in drawn]), [truth for _, truth in drawn], np.arange(300) % 2


def _array(truths, key):
    return np.array([truth[key] for truth in truths])


def _best_threshold(values, labels):
    """Return the share of labels that the best single threshold predicts, in either direction."""
    shares = [((values > limit) == (labels == 1)).mean() for limit in values]
    return max(*shares, *(1 - share for share in shares))


def _mean_hematoxylin(images):
    density = -np.log(np.clip(images, 0.02, 1)).transpose(0, 2, 3, 1)
    stains = np.linalg.lstsq(np.array([HEMATOXYLIN, EOSIN]).T, density.reshape(-1, 3).T, rcond=None)[0]
    return stains[0].reshape(len(images), -1).mean(1)


def test_images_are_float_in_range_and_not_saturated(sample):
    images, _, _ = sample
    assert images.dtype == np.float32
    assert images.shape == (300, 3, 64, 64)
    assert images.min() >= 0
    assert images.max() <= 1
    assert (images == 1).mean() < 0.02


def test_phantom_is_a_function_of_its_seed():
    first, second = draw_histology_phantom(3, 1), draw_histology_phantom(3, 1)
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1]
    assert not np.array_equal(first[0], draw_histology_phantom(4, 1)[0])


def test_number_of_lymphocytes_is_the_label(sample):
    _, truths, labels = sample
    numbers = _array(truths, "lymphocytes")
    assert set(numbers[labels == 0]) == set(range(9, 14))
    assert set(numbers[labels == 1]) == set(range(1, 4))
    np.testing.assert_array_equal(_array(truths, "lymphocyte_density"), numbers)


def test_glands_and_stroma_do_not_give_the_label(sample):
    _, truths, labels = sample
    assert set(_array(truths, "glands")) == {1, 2}
    assert _best_threshold(_array(truths, "glands"), labels) < 0.65
    assert _best_threshold(_array(truths, "stroma_share"), labels) < 0.65


def test_brightness_and_colour_do_not_give_the_label(sample):
    images, _, labels = sample
    assert _best_threshold(images.mean((1, 2, 3)), labels) < 0.75
    assert _best_threshold(_mean_hematoxylin(images), labels) < 0.88  # lymphocytes are haematoxylin


def test_tissue_is_pink_with_white_lumina_and_dark_blue_nuclei(sample):
    images, _, labels = sample
    red, green, blue = np.median(images, axis=(2, 3)).T
    assert ((red > blue) & (blue > green)).mean() > 0.95
    assert (images.min(1).reshape(300, -1).max(1) > 0.7).mean() > 0.95
    for image in images[labels == 0]:
        red, green, blue = image[:, image.sum(0) < np.quantile(image.sum(0), 0.01)].mean(1)
        assert blue > red
        assert blue > green
        assert red < 0.45


def test_same_phantom_at_twice_the_size_is_the_same_tissue():
    small, truth = draw_histology_phantom(5, 0, 64)
    large, large_truth = draw_histology_phantom(5, 0, 128)
    assert large_truth["lymphocytes"] == truth["lymphocytes"]
    assert large_truth["lymphocyte_radius"] == 2 * truth["lymphocyte_radius"]
    pooled = large.reshape(3, 64, 2, 64, 2).mean((2, 4))
    assert np.abs(pooled - small).mean() < 0.02


def test_oblong_phantom_has_the_density_of_a_square_one():
    image, truth = draw_histology_phantom(5, 0, (96, 64))
    assert image.shape == (3, 96, 64)
    assert truth["lymphocyte_density"] == pytest.approx(truth["lymphocytes"] / 1.5)
    assert 8.5 <= truth["lymphocyte_density"] <= 13.5


@pytest.mark.parametrize(("label", "size"), [(2, 64), (-1, 64), (0, 8)])
def test_unknown_label_and_tiny_size_are_refused(label, size):
    with pytest.raises(ValueError, match="label is|size is"):
        draw_histology_phantom(0, label, size)
