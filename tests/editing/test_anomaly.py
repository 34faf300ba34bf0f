"""Maps of what differs from healthy variations, and a threshold with a known false positive rate."""

import math

import pytest
import torch
from gaussian_model import MEANS, drawn_images

from medfusion_monai.editing import anomaly_map, anomaly_threshold, variations
from medfusion_monai.editing.anomaly import scores_of, smoothed


def test_map_of_a_gaussian_is_the_distance_of_the_means(gaussian):
    maps = anomaly_map(gaussian, drawn_images(1, 64), "low", strength=1.0, guidance_scale=1.0, smoothing=0.0, n=64)
    assert maps.shape == (64, 1, 6, 5)
    assert float(maps.mean()) == pytest.approx((MEANS[1] - MEANS[0]) / 2, abs=0.02)


def test_what_the_class_does_not_have_stands_out(gaussian):
    images = drawn_images(0, 2)
    images[0, :, 2, 3] = 1.0
    first, second = anomaly_map(gaussian, images, "low", strength=0.9, guidance_scale=1.0, smoothing=0.0)[:, 0]
    assert float(first[2, 3]) > 3 * float(second.mean())
    first[2, 3] = 0
    assert float(first.max()) < 3 * float(second.mean())


def test_map_is_the_mean_difference_of_variations_from_the_reconstruction(model, images):
    settings = {"guidance_scale": 1.5, "num_inference_steps": 4}
    maps = anomaly_map(model, images, 0, smoothing=0.0, n=2, seed=3, **settings)
    shown = variations(model, images, 0, 0.4, 2, 3, **settings)
    expected = (shown.unflatten(0, (-1, 2)) - model.reconstruct(images)[:, None]).abs().mean((1, 2))
    torch.testing.assert_close(maps[:, 0], expected, rtol=0, atol=1e-6)


def test_smoothing_is_that_of_a_gaussian():
    point = torch.zeros(1, 1, 41, 41)
    point[..., 20, 20] = 1.0
    spread = smoothed(point, 3.0)[0, 0]
    assert float(spread.sum()) == pytest.approx(1.0, abs=1e-3)
    distance = torch.arange(41.0) - 20
    assert float((spread.sum(1) * distance**2).sum()) == pytest.approx(9.0, rel=0.05)
    assert torch.equal(smoothed(point, 0.0), point)
    even = torch.full((1, 1, 6, 5), 0.5)
    torch.testing.assert_close(smoothed(even, 2.0), even, rtol=0, atol=1e-6)  # no loss at the borders


def test_threshold_has_the_stated_false_positive_rate():
    generator = torch.Generator().manual_seed(0)
    rates = []
    for _ in range(300):
        held_out, others = torch.rand(2, 39, generator=generator), torch.rand(500, generator=generator)
        rates.append(float((others > anomaly_threshold(held_out[0], 0.1).value).double().mean()))
    assert sum(rates) / 300 == pytest.approx(0.1, abs=0.01)


def test_interval_of_the_threshold_covers_the_quantile():
    generator = torch.Generator().manual_seed(1)
    found = [anomaly_threshold(torch.rand(200, generator=generator), 0.1) for _ in range(400)]
    assert all(one.low <= one.value <= one.high for one in found)
    covered = sum(one.low <= 0.9 <= one.high for one in found) / 400
    assert 0.93 <= covered <= 0.99


def test_threshold_of_few_images_has_no_upper_end():
    found = anomaly_threshold(torch.arange(19.0), 0.05)
    assert (found.value, found.high, found.num_images) == (18.0, math.inf, 19)
    maps = torch.arange(19.0).view(19, 1, 1, 1).expand(19, 1, 2, 2)
    assert anomaly_threshold(maps, 0.05) == found
    assert torch.equal(scores_of(maps), torch.arange(19.0))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.zeros(18), 0.05), "needs at least 19 healthy images, received 18"),
        ((torch.zeros(18), 0), "false_positive_rate must be between 0 and 1, received 0"),
        ((torch.zeros(18), 0.1, 1.0), "confidence must be between 0 and 1"),
        ((torch.zeros(3, 4),), r"maps must be \(N, 1, H, W\), or scores \(N,\), received shape \(3, 4\)"),
        ((torch.full((20,), float("nan")),), "maps must be finite"),
    ],
)
def test_bad_scores_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        anomaly_threshold(*arguments)


def test_bad_smoothing_is_refused(model, images):
    with pytest.raises(ValueError, match="smoothing must be a finite number of at least 0"):
        anomaly_map(model, images, 0, smoothing=-1.0)
