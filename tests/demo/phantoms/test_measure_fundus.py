"""The measured cup-to-disc ratio, compared with the drawn one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medfusion_monai.demo.phantoms.draw_chest import draw_chest_phantom
from medfusion_monai.demo.phantoms.draw_fundus import draw_fundus_phantom
from medfusion_monai.demo.phantoms.draw_histology import draw_histology_phantom
from medfusion_monai.demo.phantoms.measure_fundus import measure_cup_to_disc_ratio
from medfusion_monai.demo.phantoms.measurements import class_agreement

ORANGE = np.array([0.70, 0.35, 0.18])[:, None, None]


def _draw(number, size, first_seed=50_000):
    drawn = [draw_fundus_phantom(first_seed + index, index % 2, size) for index in range(number)]
    ratios = np.array([truth["cup_to_disc_ratio"] for _, truth in drawn])
    return np.stack([image for image, _ in drawn]), ratios, np.arange(number) % 2


def _blur(images, sigma):
    taps = torch.exp(-(torch.arange(-4, 5) ** 2) / (2 * sigma**2))
    taps = taps / taps.sum()
    flat = torch.from_numpy(images).flatten(0, 1)[:, None]  # (N, C, H, W) -> (N*C, 1, H, W)
    blurred = F.conv2d(F.pad(flat, (4, 4, 4, 4), mode="replicate"), taps.view(1, 1, 1, 9))
    return F.conv2d(blurred, taps.view(1, 1, 9, 1)).reshape(images.shape).numpy()


def _plain_eye(ratio, side=96):
    """A disc with a cup on an even field, without vessels: the ratio is exact by construction."""
    rows, columns = np.mgrid[:side, :side] + 0.5
    away = np.hypot(rows - side / 2, columns - 0.4 * side) / side
    share = np.clip(0.5 - (away - 0.17) * side, 0, 1) + np.clip(0.5 - (away - 0.17 * ratio) * side, 0, 1)
    return (ORANGE + share * np.array([0.1, 0.25, 0.2])[:, None, None])[None]


@pytest.mark.parametrize("ratio", [0.3, 0.4, 0.5, 0.6, 0.7])
def test_ratio_of_circles_is_their_radii(ratio):
    assert measure_cup_to_disc_ratio(_plain_eye(ratio))[0] == pytest.approx(ratio, abs=0.015)


@pytest.mark.parametrize(("number", "size"), [(200, 64), (30, 96), (30, 128), (10, 256), (30, (96, 64))])
def test_fresh_phantoms_are_measured_to_a_hundredth(number, size):
    images, ratios, labels = _draw(number, size)
    measured = measure_cup_to_disc_ratio(images)
    assert np.abs(measured - ratios).mean() < 0.0125
    assert min(class_agreement(images, labels, "fundus").values()) >= 0.99


def test_blur_noise_and_eight_bits_are_borne():
    images, ratios, labels = _draw(100, 64)
    noisy = _blur(images, 0.7) + np.random.default_rng(0).normal(0, 0.02, images.shape)
    written = np.rint(255 * np.clip(noisy, 0, 1)) / 255
    assert min(class_agreement(written, labels, "fundus").values()) >= 0.98
    assert np.nanmean(np.abs(measure_cup_to_disc_ratio(written) - ratios)) < 0.02


def test_vessel_across_the_disc_is_borne():
    images, ratios, _ = _draw(40, 64)
    for image, seed in zip(images, range(50_000, 50_040), strict=True):
        column = int(draw_fundus_phantom(seed, seed % 2)[1]["disc_x"])
        image[1:, :, column : column + 2] *= 0.75
    assert np.abs(measure_cup_to_disc_ratio(images) - ratios).mean() < 0.03


@pytest.mark.parametrize(("scale", "offset"), [(0.4, 0.3), (0.7, 0.0), (0.5, 0.5)])
def test_contrast_and_brightness_do_not_matter(scale, offset):
    images, _, _ = _draw(20, 64)
    expected = measure_cup_to_disc_ratio(images)
    np.testing.assert_allclose(measure_cup_to_disc_ratio(images * scale + offset), expected, atol=0.002)


def test_images_without_a_disc_are_not_measured():
    rng = np.random.default_rng(0)
    plain = np.stack([np.full((3, 64, 64), value) for value in (0.0, 0.7, np.nan)] + [ORANGE * np.ones((3, 64, 64))])
    assert np.isnan(measure_cup_to_disc_ratio(plain)).all()
    for noise in (rng.normal(0.5, 0.1, (60, 3, 64, 64)), ORANGE + rng.normal(0, 0.1, (60, 3, 64, 64))):
        assert np.isnan(measure_cup_to_disc_ratio(noise)).all()


def test_disc_without_a_cup_is_not_measured():
    assert np.isfinite(measure_cup_to_disc_ratio(_plain_eye(0.5))).all()
    assert np.isnan(measure_cup_to_disc_ratio(_plain_eye(0.0))).all()
    assert np.isnan(measure_cup_to_disc_ratio(_plain_eye(1.0))).all()


def test_phantoms_of_other_modalities_are_not_measured():
    chests = np.stack([np.repeat(draw_chest_phantom(seed, seed % 2)[0], 3, axis=0) for seed in range(40)])
    tissues = np.stack([draw_histology_phantom(seed, seed % 2)[0] for seed in range(40)])
    assert np.isnan(measure_cup_to_disc_ratio(chests)).all()
    assert np.isnan(measure_cup_to_disc_ratio(tissues)).all()


def test_mirrored_eye_has_the_same_ratio():
    images, _, _ = _draw(20, 64)
    expected = measure_cup_to_disc_ratio(images)
    np.testing.assert_allclose(measure_cup_to_disc_ratio(images[..., ::-1]), expected, atol=0.01)


def test_tensor_and_array_give_the_same():
    images, _, labels = _draw(4, 64)
    tensor = torch.from_numpy(images)
    np.testing.assert_allclose(measure_cup_to_disc_ratio(tensor), measure_cup_to_disc_ratio(images))
    assert class_agreement(tensor, torch.from_numpy(labels), "fundus") == {0: 1.0, 1: 1.0}


def test_swapped_labels_and_unmeasured_images_disagree():
    images, _, labels = _draw(10, 64)
    assert class_agreement(images, 1 - labels, "fundus") == {0: 0.0, 1: 0.0}
    images[0] = 0
    assert class_agreement(images, labels, "fundus") == {0: 0.8, 1: 1.0}


def test_gray_images_are_refused():
    with pytest.raises(ValueError, match=r"instead of \(N, 3, H, W\)"):
        measure_cup_to_disc_ratio(np.zeros((3, 1, 64, 64)))
