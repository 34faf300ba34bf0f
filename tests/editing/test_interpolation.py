"""Frames between images and seeds, and variations of images."""

import math

import pytest
import torch
from gaussian_model import MEANS, SPREAD, drawn_images

from medfusion_monai.editing import interpolate, variations
from medfusion_monai.editing.interpolation import slerp


def test_slerp_keeps_the_length_and_divides_the_angle():
    start, end = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    frames = slerp(start, end, torch.tensor([0.0, 1 / 3, 1.0]))
    expected = torch.tensor([[1.0, 0.0], [math.cos(math.pi / 6), math.sin(math.pi / 6)], [0.0, 1.0]])
    torch.testing.assert_close(frames, expected)
    torch.testing.assert_close(slerp(start, start, torch.tensor([0.5]))[0], start)


def test_ends_between_images_are_their_reconstructions(model, images):
    frames = interpolate(model, images[0], images[1], 3, label=[0, 1])
    assert frames.shape == (3, 1, 16, 24)
    torch.testing.assert_close(frames[[0, 2]], model.reconstruct(images[:2]), rtol=0, atol=1e-4)
    assert (frames[1] - frames[0]).abs().max() > 0.01


def test_frame_between_gaussians_lies_on_the_sphere_around_the_mean_of_means(gaussian):
    images = torch.cat([drawn_images(0, 1), drawn_images(1, 1, seed=1)])
    frame = interpolate(gaussian, *images, 3, label=["low", "high"])[1]
    offsets = [gaussian.encode(image[None])[0] - mean for image, mean in zip(images, MEANS, strict=True)]
    # Only up to the signal that is left in the noise, which slerp takes for a part of it.
    expected = slerp(*offsets, torch.tensor([0.5]))[0] * 0.5 + 0.5
    assert offsets[0].std() == pytest.approx(SPREAD, rel=0.5)
    torch.testing.assert_close(frame, expected, rtol=0, atol=0.03)


def test_ends_between_seeds_are_the_samples(model):
    frames = interpolate(model, 3, 4, 3, label=1)
    for frame, seed in zip(frames[[0, 2]], (3, 4), strict=True):
        torch.testing.assert_close(frame, model.sample(1, seed=seed)[0], rtol=0, atol=1e-4)
    labels = interpolate(model, 3, 3, 3, label=[0, 1])
    torch.testing.assert_close(labels[0], model.sample(0, seed=3)[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(labels[2], model.sample(1, seed=3)[0], rtol=0, atol=1e-4)


def test_sampler_may_be_chosen_between_seeds(model):
    frames = interpolate(model, 3, 4, 2, label=1, sampler="unipc", num_inference_steps=3)
    expected = model.sample(1, seed=3, sampler="unipc", num_inference_steps=3)
    torch.testing.assert_close(frames[:1], expected, rtol=0, atol=1e-4)


def test_frames_do_not_depend_on_the_batch(model):
    together, alone = (interpolate(model, 3, 4, 5, label=[0, 1], batch_size=size) for size in (16, 2))
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((1, 2, 1, 0), "frames must be a whole number of at least 2, received 1"),
        ((1, 2, 3), "label must be given between two seeds: one of no_cardiomegaly, cardiomegaly"),
        ((1, 2, 3, [0, 1, 0]), "label has 3 entries for 2"),
        ((1, -2, 3, 0), "end must be"),
        ((1, torch.zeros(1, 16, 24), 3, 0), "received a int and a Tensor"),
        ((torch.zeros(1, 16, 24), torch.zeros(1, 16, 16), 3, 0), r"end must be a tensor .* shape \(1, 1, 16, 16\)"),
    ],
)
def test_bad_ends_are_refused(model, arguments, words):
    with pytest.raises(ValueError, match=words):
        interpolate(model, *arguments)


def test_variation_of_full_strength_is_a_sample_and_of_little_the_image(gaussian):
    images = drawn_images(0, 2)
    free = variations(gaussian, images, "high", strength=1.0, n=200)
    assert float(free.mean()) == pytest.approx(MEANS[1] / 2 + 0.5, abs=0.01)
    # The last step predicts clean latents at the lowest noise level, whose spread is a little smaller.
    lowest = gaussian.schedule.noise_to_signal(0)
    assert float(free.std()) == pytest.approx(SPREAD / 2 / (1 + (lowest / SPREAD) ** 2) ** 0.5, rel=0.05)
    near = variations(gaussian, images, "low", strength=0.02)
    assert (near - images).abs().mean() < 0.03 < 0.1 < (free - images.repeat_interleave(200, 0)).abs().mean()


def test_variation_depends_on_seed_image_and_number_alone(model, images):
    all_at_once = variations(model, images, 1, n=2, num_inference_steps=4)
    assert all_at_once.shape == (6, 1, 16, 24)
    alone = variations(model, images[2:], 1, n=2, batch_size=1, num_inference_steps=4)
    torch.testing.assert_close(all_at_once[4:], alone, rtol=0, atol=1e-4)
    assert (all_at_once[0] - all_at_once[1]).abs().max() > 0.01
    other = variations(model, images, 1, n=2, seed=1, num_inference_steps=4)
    assert (other - all_at_once).abs().max() > 0.01


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"strength": 0.0}, "strength must be"), ({"n": 0}, "n must be"), ({"seed": -1}, "seed must be")],
)
def test_bad_variation_is_refused(model, images, settings, words):
    with pytest.raises(ValueError, match=words):
        variations(model, images, 0, **settings)
