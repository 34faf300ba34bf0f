"""The class of an image by the denoising error under each label."""

import math

import pytest
import torch
from gaussian_model import drawn_images, gaussian_model

from medfusion_monai.editing import calibrate, classify


def test_log_likelihoods_of_gaussians_are_exact():
    means, spread = (-0.06, 0.06), 0.3  # wide beside the lowest noise level, below which nothing is measured
    wide = gaussian_model(means=means, spread=spread)
    images = torch.cat([drawn_images(label, 50, label, means, spread) for label in (0, 1)])
    found = classify(wide, images, num_levels=100)
    latents = wide.encode(images).double()
    low, high = (-((latents - mean).square() / (2 * spread**2)).flatten(1).sum(1) for mean in means)
    ratio = found.log_likelihoods[:, 1] - found.log_likelihoods[:, 0]
    exact = high - low
    assert (ratio * exact).sum() / exact.square().sum() == pytest.approx(1.0, abs=0.05)
    assert (ratio - exact).mean().abs() < 0.2
    assert (ratio - exact).std() < 0.4 * exact.std()  # the noise is drawn
    torch.testing.assert_close(found.probabilities[:, 1], torch.sigmoid(ratio).float(), rtol=0, atol=1e-5)


def test_label_is_found(gaussian):
    images = torch.cat([drawn_images(0, 5), drawn_images(1, 5)])
    found = classify(gaussian, images, num_levels=8)
    assert found.labels.tolist() == [0] * 5 + [1] * 5
    assert not found.is_calibrated
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(10))


def test_classification_depends_on_seed_and_image_alone(model, images):
    together, alone = classify(model, images, num_levels=4), classify(model, images, num_levels=4, batch_size=1)
    turned = classify(model, images.flip(0), num_levels=4)
    close = {"rtol": 1e-4, "atol": 1e-2}
    torch.testing.assert_close(together.log_likelihoods, alone.log_likelihoods, **close)
    torch.testing.assert_close(together.log_likelihoods, turned.log_likelihoods.flip(0), **close)
    other = classify(model, images, num_levels=4, seed=1)
    assert (other.log_likelihoods - together.log_likelihoods).abs().max() > 0.1


def test_temperature_of_exact_probabilities_is_one_and_of_sharper_ones_their_factor():
    generator = torch.Generator().manual_seed(0)
    ratio = 2 * torch.randn(20_000, generator=generator).double()
    labels = (torch.rand(20_000, generator=generator) < torch.sigmoid(ratio)).long()
    scores = torch.stack([torch.zeros_like(ratio), ratio], 1)
    assert calibrate(scores, labels).temperature == pytest.approx(1.0, abs=0.05)
    sharp = calibrate(50 * scores, labels)
    assert sharp.temperature == pytest.approx(50, rel=0.05)
    assert sharp.log_loss < sharp.log_loss_before / 10
    assert sharp.num_images == 20_000


def test_temperature_stays_above_zero_if_all_images_are_right():
    scores = torch.tensor([[0.0, -100.0]] * 8)
    fitted = calibrate(scores, torch.zeros(8, dtype=torch.long))
    # The probability is then that of the smoothed target, 1 - 1 / (8 + 2).
    assert math.exp(-fitted.log_loss) == pytest.approx(0.9, abs=1e-3)


def test_temperature_is_used_and_said(gaussian):
    images = drawn_images(0, 2)
    sharp = classify(gaussian, images, num_levels=4)
    soft = classify(gaussian, images, temperature=1e4, num_levels=4)
    assert soft.is_calibrated
    assert soft.probabilities[0, 0] < 0.6 < sharp.probabilities[0, 0]
    torch.testing.assert_close(soft.log_likelihoods, sharp.log_likelihoods)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": 0}, "temperature must be a finite number above 0, received 0"),
        ({"num_levels": 1}, "num_levels must be a whole number of at least 2"),
        ({"seed": -1}, "seed must be"),
        ({"images": torch.zeros(1, 1, 5, 6)}, r"received shape \(1, 1, 5, 6\)"),
    ],
)
def test_bad_input_is_refused(gaussian, settings, words):
    with pytest.raises(ValueError, match=words):
        classify(gaussian, **{"images": drawn_images(0, 1), **settings})


@pytest.mark.parametrize(
    ("scores", "labels", "words"),
    [
        (torch.zeros(1, 2), [0], r"both at least 2, received shape \(1, 2\)"),
        (torch.zeros(4), [0] * 4, "both at least 2"),
        (torch.zeros(2, 2), [0, 1, 1], "labels must be 2 numbers from 0 to 1"),
        (torch.zeros(2, 2), [0, 2], r"received \[0, 2\]"),
    ],
)
def test_images_that_do_not_suffice_to_calibrate_are_refused(scores, labels, words):
    with pytest.raises(ValueError, match=words):
        calibrate(scores, labels)


def test_labels_to_calibrate_may_be_names(gaussian):
    images = torch.cat([drawn_images(0, 2), drawn_images(1, 2)])
    scores = classify(gaussian, images, num_levels=4).log_likelihoods
    named = calibrate(scores, ["low", "low", "high", "high"], gaussian)
    assert named == calibrate(scores, [0, 0, 1, 1])
    with pytest.raises(ValueError, match="labels 'middle' is not a class"):
        calibrate(scores, ["low", "low", "high", "middle"], gaussian)
