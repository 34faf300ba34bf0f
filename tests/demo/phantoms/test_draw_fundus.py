"""Fundus phantoms: the label is the drawn cup-to-disc ratio, and nothing simpler reveals it."""

import numpy as np
import pytest

from medfusion_monai.demo.phantoms.draw_fundus import draw_fundus_phantom


@pytest.fixture(scope="module")
def sample():
    """Four hundred phantoms: images (N, 3, 64, 64), truths, labels."""
    drawn = [draw_fundus_phantom(seed, seed % 2) for seed in range(400)]
    return np.stack([image for image, _ in drawn]), [truth for _, truth in drawn], np.arange(400) % 2


def _array(truths, key):
    return np.array([truth[key] for truth in truths])


def _green(image, x, y):
    """Return the mean green of 3x3 pixels around a point in pixels, with pixel centres at halves."""
    row, column = int(y), int(x)
    return image[1, row - 1 : row + 2, column - 1 : column + 2].mean()


def test_images_are_float_in_range_and_not_saturated(sample):
    images, _, _ = sample
    assert images.dtype == np.float32
    assert images.shape == (400, 3, 64, 64)
    assert images.min() >= 0
    assert images.max() <= 1
    assert (images == 1).mean() < 0.001


def test_phantom_is_a_function_of_its_seed():
    first, second = draw_fundus_phantom(3, 1), draw_fundus_phantom(3, 1)
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1]
    assert not np.array_equal(first[0], draw_fundus_phantom(4, 1)[0])


def test_ratio_lies_on_the_side_of_the_label(sample):
    _, truths, labels = sample
    ratios = _array(truths, "cup_to_disc_ratio")
    assert ratios[labels == 0].min() >= 0.32
    assert ratios[labels == 0].max() <= 0.42
    assert ratios[labels == 1].min() >= 0.60
    assert ratios[labels == 1].max() <= 0.70
    np.testing.assert_allclose(_array(truths, "cup_height") / _array(truths, "disc_height"), ratios)


def test_height_of_the_disc_does_not_give_the_label(sample):
    _, truths, labels = sample
    heights = _array(truths, "disc_height")
    best = max(((heights > limit) == (labels == 1)).mean() for limit in heights)
    assert best < 0.60


def test_mean_colour_does_not_give_the_label(sample):
    """A linear classifier of the mean red, green and blue, fitted on one half, is near chance on the other."""
    images, _, labels = sample
    features = np.column_stack([images.mean((2, 3)), np.ones(400)])
    weights = np.linalg.lstsq(features[:200], 2.0 * labels[:200] - 1, rcond=None)[0]
    assert ((features[200:] @ weights > 0) == (labels[200:] == 1)).mean() < 0.62
    means = images.mean((1, 2, 3))
    assert abs(means[labels == 0].mean() - means[labels == 1].mean()) < 0.3 * means.std()


def test_cup_is_paler_than_the_rim_and_the_rim_than_the_fundus(sample):
    images, truths, _ = sample
    for image, truth in zip(images[:100], truths, strict=False):
        temporal = 1 if truth["left_eye"] else -1
        rim_x = truth["disc_x"] + temporal * (0.40 if truth["cup_to_disc_ratio"] > 0.5 else 0.32) * truth["disc_height"]
        beside_x = truth["disc_x"] + temporal * 0.62 * truth["disc_height"]
        cup, rim, beside = (_green(image, x, truth["disc_y"]) for x in (truth["cup_x"] + temporal, rim_x, beside_x))
        assert cup > rim + 0.05
        assert rim > beside + 0.03


def test_macula_is_temporal_of_the_disc_and_darker_than_the_fundus(sample):
    images, truths, _ = sample
    left, beside = _array(truths, "left_eye"), _array(truths, "macula_x") - _array(truths, "disc_x")
    assert 0.4 < left.mean() < 0.6
    np.testing.assert_array_equal(np.sign(beside), np.where(left == 1, 1, -1))
    diameters = np.abs(beside) / _array(truths, "disc_height")
    assert diameters.min() > 0.85
    assert diameters.max() < 1.9
    for image, truth in zip(images[:100], truths, strict=False):
        halfway = (truth["macula_x"] + truth["disc_x"]) / 2
        macula = _green(image, truth["macula_x"], truth["macula_y"])
        assert macula < 0.95 * _green(image, halfway, truth["macula_y"])


def test_field_is_orange_and_round_on_black_and_holds_the_disc(sample):
    images, truths, _ = sample
    red, green, blue = images[:, :, 24:40, 24:40].mean((2, 3)).T
    assert (red > green + 0.1).all()
    assert (green > blue).all()
    corners = images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.max() < 0.1
    x, y = _array(truths, "disc_x") - 32, _array(truths, "disc_y") - 32
    assert (np.hypot(x, y) + 0.49 * _array(truths, "disc_height")).max() < 31.5


def test_same_phantom_at_twice_the_size_is_the_same_eye():
    small, truth = draw_fundus_phantom(5, 0, 64)
    large, large_truth = draw_fundus_phantom(5, 0, 128)
    assert large_truth["cup_to_disc_ratio"] == truth["cup_to_disc_ratio"]
    assert large_truth["macula_x"] == pytest.approx(2 * truth["macula_x"])
    pooled = large.reshape(3, 64, 2, 64, 2).mean((2, 4))
    assert np.abs(pooled - small).mean() < 0.02


def test_size_may_be_oblong():
    image, truth = draw_fundus_phantom(5, 0, (96, 64))
    square = draw_fundus_phantom(5, 0, 64)[1]
    assert image.shape == (3, 96, 64)
    assert truth["disc_height"] == pytest.approx(square["disc_height"])
    assert truth["disc_y"] == pytest.approx(square["disc_y"] + 16)


def test_pixel_noise_is_faint():
    flat = draw_fundus_phantom(0, 0, 256)[0]
    differences = flat[:, :, 1:] - flat[:, :, :-1]
    assert np.median(np.abs(differences)) / 0.6745 / np.sqrt(2) < 0.012


@pytest.mark.parametrize(("label", "size"), [(2, 64), (-1, 64), (0, 8)])
def test_unknown_label_and_tiny_size_are_refused(label, size):
    with pytest.raises(ValueError, match="label is|size is"):
        draw_fundus_phantom(0, label, size)
