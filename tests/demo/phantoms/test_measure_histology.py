"""The measured density of lymphocytes, compared with the drawn one."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medfusion_monai.data.reading.images import read_image
from medfusion_monai.demo.phantoms.draw_chest import draw_chest_phantom
from medfusion_monai.demo.phantoms.draw_histology import draw_histology_phantom
from medfusion_monai.demo.phantoms.measure_histology import lymphocyte_places, measure_lymphocyte_density
from medfusion_monai.demo.phantoms.measurements import class_agreement

REAL = Path(os.environ.get("MEDFUSION_DATA", "../shared/data")) / "histo"
PINK = np.array([0.85, 0.55, 0.70])[:, None, None]


def _draw(number, size, first_seed=50_000):
    drawn = [draw_histology_phantom(first_seed + index, index % 2, size) for index in range(number)]
    densities = np.array([truth["lymphocyte_density"] for _, truth in drawn])
    return np.stack([image for image, _ in drawn]), densities, np.arange(number) % 2


def _blur(images, sigma):
    taps = torch.exp(-(torch.arange(-4, 5) ** 2) / (2 * sigma**2))
    taps = taps / taps.sum()
    flat = torch.from_numpy(images).flatten(0, 1)[:, None]  # (N, C, H, W) -> (N*C, 1, H, W)
    blurred = F.conv2d(F.pad(flat, (4, 4, 4, 4), mode="replicate"), taps.view(1, 1, 1, 9))
    return F.conv2d(blurred, taps.view(1, 1, 9, 1)).reshape(images.shape).numpy()


@pytest.mark.parametrize(("number", "size"), [(200, 64), (40, 128), (20, 256), (40, (96, 64)), (40, 100), (40, 48)])
def test_fresh_phantoms_are_counted_almost_without_error(number, size):
    images, densities, labels = _draw(number, size)
    measured = measure_lymphocyte_density(images)
    assert np.abs(measured - densities).mean() <= 0.05
    assert min(class_agreement(images, labels, "histo").values()) >= 0.99


def test_blur_noise_and_eight_bits_are_borne():
    images, _, labels = _draw(120, 64)
    noisy = _blur(images, 0.7) + np.random.default_rng(0).normal(0, 0.02, images.shape)
    written = np.rint(255 * np.clip(noisy, 0, 1)) / 255
    assert min(class_agreement(written, labels, "histo").values()) >= 0.98


def test_paler_light_does_not_matter():
    images, densities, _ = _draw(40, 64)
    assert np.abs(measure_lymphocyte_density(0.9 * images) - densities).mean() < 0.05


def test_dots_that_are_drawn_over_are_no_longer_counted():
    """The count is zero if the darkest nuclei are painted as pale as the others."""
    images, _, _ = _draw(40, 64)
    paler = np.maximum(images, np.median(images, axis=(2, 3), keepdims=True) * 0.8)
    assert measure_lymphocyte_density(images[::2]).min() >= 9
    assert np.nan_to_num(measure_lymphocyte_density(paler)).max() <= 1


def test_images_without_stained_tissue_are_not_measured():
    rng = np.random.default_rng(0)
    plain = np.stack([np.full((3, 64, 64), value) for value in (0.0, 0.5, 1.0, np.nan)] + [PINK * np.ones((3, 64, 64))])
    assert np.isnan(measure_lymphocyte_density(plain)).all()
    gray_noise = np.clip(rng.normal(0.5, 0.1, (50, 3, 64, 64)), 0, 1)
    pink_noise = np.clip(PINK + rng.normal(0, 0.1, (50, 3, 64, 64)), 0, 1)
    assert np.isnan(measure_lymphocyte_density(gray_noise)).all()
    assert np.isnan(measure_lymphocyte_density(pink_noise)).all()


def test_chest_phantoms_in_three_channels_are_not_measured():
    chests = np.stack([np.repeat(draw_chest_phantom(seed, seed % 2)[0], 3, axis=0) for seed in range(30)])
    assert np.isnan(measure_lymphocyte_density(chests)).all()


@pytest.mark.parametrize("size", [64, 128])
def test_places_are_dark_and_as_many_as_are_counted(size):
    image = _draw(1, size)[0][0]
    places = lymphocyte_places(image)
    assert len(places) == measure_lymphocyte_density(image[None])[0]
    rows, columns = places.round().astype(int).T
    assert image[0, rows, columns].max() < np.quantile(image[0], 0.15)


def test_tensor_and_array_give_the_same():
    images, densities, labels = _draw(4, 64)
    tensor = torch.from_numpy(images)
    np.testing.assert_array_equal(measure_lymphocyte_density(tensor), densities)
    assert class_agreement(tensor, torch.from_numpy(labels), "histo") == {0: 1.0, 1: 1.0}


def test_swapped_labels_and_unmeasured_images_disagree():
    images, _, labels = _draw(10, 64)
    assert class_agreement(images, 1 - labels, "histo") == {0: 0.0, 1: 0.0}
    images[1] = 0
    assert class_agreement(images, labels, "histo") == {0: 1.0, 1: 0.8}


def test_gray_images_are_refused():
    with pytest.raises(ValueError, match=r"instead of \(N, 3, H, W\)"):
        measure_lymphocyte_density(np.zeros((3, 1, 64, 64)))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"real H&E tiles are not at {REAL}")
def test_real_slides_are_recognised_as_tissue():
    tiles = [read_image(path, 3) for path in sorted(REAL.glob("*.jpg"))[::40]]
    assert np.isfinite([measure_lymphocyte_density(np.asarray(tile)[None])[0] for tile in tiles]).mean() > 0.85
