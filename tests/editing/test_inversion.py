"""Images to noise and back; counterfactuals."""

import pytest
import torch
from gaussian_model import MEANS, SPREAD, drawn_images

from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.editing import counterfactual, invert, regenerate
from medfusion_monai.editing.inversion import ddim_invert, ddim_walk


def test_noise_of_a_gaussian_is_the_standardised_image(gaussian):
    images = drawn_images(1, 4)
    inversion = invert(gaussian, images, "high")
    schedule, (top, *_, bottom) = gaussian.schedule, inversion.timesteps
    # The flow keeps the distance from the mean in units of the marginal's standard deviation.
    signal, sigma = schedule.exact_signal, schedule.exact_sigma
    spread_at = [(signal[t] ** 2 * SPREAD**2 + sigma[t] ** 2) ** 0.5 for t in (top, bottom)]
    offset = signal[bottom] * (gaussian.encode(images) - MEANS[1])
    expected = signal[top] * MEANS[1] + spread_at[0] / spread_at[1] * offset
    torch.testing.assert_close(inversion.noisy_latents, expected, rtol=0.03, atol=0.02)


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
def test_way_back_ends_at_the_latents(model, images, strength):
    inversion = invert(model, images, [0, 1, 0], strength)
    torch.testing.assert_close(regenerate(model, inversion), model.reconstruct(images), rtol=0, atol=1e-4)


def test_steps_are_solved_and_not_only_their_rest_kept(gaussian):
    inversion = invert(gaussian, drawn_images(0, 4), 0)
    assert inversion.defects.abs().max() < 1e-3
    forgotten = inversion._replace(defects=torch.zeros_like(inversion.defects))
    torch.testing.assert_close(regenerate(gaussian, forgotten), regenerate(gaussian, inversion), rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    "settings",
    [
        {"prediction_type": "epsilon"},
        {"prediction_type": "sample"},
        {"prediction_type": "v_prediction", "zero_terminal_snr": True},
        {"schedule": "flow", "prediction_type": "velocity"},
    ],
    ids=str,
)
def test_every_schedule_is_inverted(settings):
    schedule = NoiseSchedule(**settings)
    latents = 0.5 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))

    def denoiser(noisy, timesteps):  # of standard normal latents
        signal, sigma = schedule.exact_signal[int(timesteps[0])], schedule.exact_sigma[int(timesteps[0])]
        clean = signal * noisy / (signal**2 + sigma**2)
        noise = (noisy - signal * clean) / sigma
        return schedule.target(clean, noise, timesteps)

    timesteps = [999, 700, 400, 200, 50, 0]
    noisy, defects = ddim_invert(denoiser, latents, schedule, timesteps)
    back = ddim_walk(denoiser, noisy, schedule, timesteps, defects) / schedule.exact_signal[0]
    torch.testing.assert_close(back, latents, rtol=0, atol=1e-4)
    assert defects.abs().max() < 1e-3


def test_inversion_does_not_depend_on_the_batch(gaussian):
    # Plain, bright and noisy images: their iterations end at different times.
    images = torch.cat([torch.full((1, 1, 6, 5), 0.4), torch.ones(1, 1, 6, 5), drawn_images(0, 1)])
    together, alone = (invert(gaussian, images, 1, batch_size=size, num_inference_steps=10) for size in (3, 1))
    torch.testing.assert_close(together.noisy_latents, alone.noisy_latents, rtol=0, atol=1e-5)
    torch.testing.assert_close(together.defects, alone.defects, rtol=0, atol=1e-6)


def test_counterfactual_moves_a_gaussian_to_the_other_mean(gaussian):
    images = drawn_images(0, 4)
    shown = counterfactual(gaussian, images, "high", "low", strength=1.0, guidance_scale=1.0)
    torch.testing.assert_close(shown, images + (MEANS[1] - MEANS[0]) / 2, rtol=0, atol=0.02)


def test_guidance_exaggerates_the_difference_of_the_classes(gaussian):
    images = drawn_images(0, 4)
    moved = [
        (counterfactual(gaussian, images, 1, 0, strength=1.0, guidance_scale=scale) - images).mean()
        for scale in (0.0, 1.0, 2.0)
    ]
    assert moved[0].abs() < 1e-4
    torch.testing.assert_close(moved[2], 2 * moved[1], rtol=0.01, atol=0)


def test_smaller_strength_changes_less(gaussian):
    images = drawn_images(0, 2)
    changes = [
        (counterfactual(gaussian, images, 1, 0, strength, 1.0) - images).abs().mean() for strength in (0.3, 0.6, 1.0)
    ]
    assert changes[0] < changes[1] < changes[2]


def test_image_of_the_wanted_class_comes_back_unchanged(model, images):
    shown = counterfactual(model, images, 1, 1)
    torch.testing.assert_close(shown, images, rtol=0, atol=1e-4)
    assert (shown - model.reconstruct(images)).abs().max() > 0.01  # its own pixels, not those of the autoencoder


def test_decoded_counterfactual_is_that_of_the_inversion(model, images):
    decoded = counterfactual(model, images, 1, 0, 0.6, 1.5, own_pixels=False)
    expected = regenerate(model, invert(model, images, 0, 0.6), 1, 1.5)
    torch.testing.assert_close(decoded, expected)
    assert (decoded - model.reconstruct(images)).abs().max() > 1e-3


def test_classes_may_differ_within_a_batch(model, images):
    together = counterfactual(model, images, [1, 1, 0], ["no_cardiomegaly", "cardiomegaly", "cardiomegaly"])
    alone = [counterfactual(model, images[:1], 1, 0), counterfactual(model, images[2:], 0, 1)]
    torch.testing.assert_close(together[[0, 2]], torch.cat(alone), rtol=0, atol=1e-4)
    torch.testing.assert_close(together[1], images[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"strength": 0}, "strength must be above 0 and at most 1"),
        ({"strength": 1.5}, "received 1.5"),
        ({"strength": "half"}, "received 'half'"),
        ({"label": "healthy"}, "label 'healthy' is not a class of this bundle"),
        ({"own_label": 2}, "own_label 2 is not a class"),
        ({"label": [0, 1]}, "label has 2 entries for 3 images"),
        ({"guidance_scale": -1.0}, "guidance_scale must be a finite number"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"num_inference_steps": 1}, "at least 2 for an edit"),
        ({"negative_label": 1}, "negative_label cannot be chosen for this edit"),
        ({"images": torch.zeros(3, 1, 16, 16)}, r"\(B, 1, 16, 24\) in \[0, 1\].*received shape \(3, 1, 16, 16\)"),
        ({"images": torch.zeros(3, 3, 16, 24)}, r"received shape \(3, 3, 16, 24\)"),
        ({"images": torch.zeros(0, 1, 16, 24)}, r"received shape \(0, 1, 16, 24\)"),
        ({"images": torch.full((3, 1, 16, 24), 255.0)}, "received 255"),
        ({"images": [1, 2, 3]}, "received a list"),
    ],
)
def test_bad_input_is_refused(model, images, settings, words):
    with pytest.raises(ValueError, match=words):
        counterfactual(model, **{"images": images, "label": 1, "own_label": 0, "num_inference_steps": 3, **settings})


def test_uncontractive_step_is_still_exact():
    schedule = NoiseSchedule(prediction_type="sample")
    latents = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(2))

    def wild(noisy, timesteps):
        return (9.0 * noisy).sin()

    noisy, defects = ddim_invert(wild, latents, schedule, [999, 500, 0], iterations=3)
    back = ddim_walk(wild, noisy, schedule, [999, 500, 0], defects) / schedule.exact_signal[0]
    assert defects.abs().max() > 1e-2
    torch.testing.assert_close(back, latents, rtol=0, atol=1e-4)
