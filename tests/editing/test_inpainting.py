"""The masked part of an image is sampled, the rest stays."""

import pytest
import torch
from gaussian_model import MEANS, Identity, drawn_images

from medfusion_monai.editing import inpaint
from medfusion_monai.editing.inpainting import EdgeFit, filled, joined, repaint


@pytest.fixture
def mask():
    mask = torch.zeros(16, 24, dtype=torch.bool)
    mask[3:12, 6:17] = True
    return mask


def test_known_pixels_stay_exactly_and_the_others_change(model, images, mask):
    made = inpaint(model, images, mask, "cardiomegaly", repeats=2)
    assert torch.equal(made[:, :, ~mask], images[:, :, ~mask])
    assert (made - images)[:, :, mask].abs().mean() > 0.05
    assert made.min() >= 0
    assert made.max() <= 1


def test_what_is_under_the_mask_has_no_influence(model, images, mask):
    made = inpaint(model, images, mask, 1, repeats=2)
    black, white = (torch.where(mask, torch.tensor(value), images) for value in (0.0, 1.0))
    assert torch.equal(inpaint(model, black, mask, 1, repeats=2), made)
    assert torch.equal(inpaint(model, white, mask, 1, repeats=2), made)


def test_result_depends_on_seed_and_image_alone(model, images, mask):
    masks = mask.expand(3, 1, 16, 24)
    together = inpaint(model, images, masks, [0, 1, 1], repeats=2)
    alone = inpaint(model, images[2:], mask, 1, repeats=2)
    torch.testing.assert_close(together[2:], alone, rtol=0, atol=1e-4)
    assert (inpaint(model, images, mask, [0, 1, 1], seed=1, repeats=2) - together).abs().max() > 0.01


def test_gaussian_is_sampled_under_its_class(gaussian):
    images = drawn_images(0, 40)
    mask = torch.zeros(6, 5)
    mask[1:6, 1:5] = 1
    made = inpaint(gaussian, images, mask, "high", repeats=1, num_inference_steps=50)
    inner = made[:, :, 3:, 3:]  # beyond the seam, one latent cell and so one pixel wide
    assert float(inner.mean()) == pytest.approx(MEANS[1] / 2 + 0.5, abs=0.01)
    assert float(inner.std()) == pytest.approx(0.046, abs=0.006)  # as variations: the last step predicts clean latents


def test_known_latents_are_those_of_the_image_at_every_level(gaussian):
    """A denoiser that copies the known cells' mean into the others can only know it from their noisy latents."""
    latents = torch.full((1, 1, 4, 4), 0.3)
    cells = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    cells[..., 2:] = True
    schedule = gaussian.schedule

    def denoiser(noisy, timesteps):
        time = int(timesteps[0])
        clean = (noisy[..., :2].mean() / schedule.exact_signal[time]).expand_as(noisy)
        noise = (noisy - schedule.exact_signal[time] * clean) / schedule.exact_sigma[time]
        return schedule.target(clean, noise, timesteps)

    made = repaint(denoiser, latents, cells, schedule, [999, 500, 100, 20, 0], [1])
    assert torch.equal(made[..., :2], latents[..., :2])
    torch.testing.assert_close(made[..., 2:], latents[..., 2:], rtol=0, atol=0.06)  # the noise of level 0, 8 cells


class Blocks(Identity):
    """Each latent is a block of four by four pixels."""

    def decode_stage_2_outputs(self, latents):
        return latents.repeat_interleave(4, 2).repeat_interleave(4, 3)


def test_known_pixels_of_a_cell_that_the_mask_cuts_pull_its_latents():
    """For a linear decoder, one step of Polyak's length halves the error."""
    known = torch.full((1, 1, 12, 12), 0.5)
    known[..., 4:8, 4:6] = 0.9  # in latents 0.8
    masks = torch.zeros(1, 1, 12, 12, dtype=torch.bool)
    masks[..., 4:8, 6:] = True  # half of the middle cell, and the whole one right of it
    cells = torch.nn.functional.max_pool2d(masks.float(), 4).bool()
    latents = torch.zeros(1, 1, 3, 3)
    latents[..., 1, 1] = 0.8
    fit = EdgeFit(Blocks(), latents, known, masks, cells)
    clean = torch.zeros(1, 1, 3, 3)
    clean[..., 1, 2] = 0.3
    made = fit(clean)
    expected = clean.clone()
    expected[..., 1, 1] = 0.4
    torch.testing.assert_close(made, expected)
    torch.testing.assert_close(fit(made)[..., 1, 1], torch.tensor([[0.6]]))
    torch.testing.assert_close(fit(latents), latents)  # not below the error of the image's own latents


def test_each_image_is_fitted_by_itself(model, images, mask):
    masks = mask.expand(3, 1, 16, 24)
    cells = torch.nn.functional.max_pool2d(masks.float(), 2).bool()
    latents = model.encode(images)
    others = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    autoencoder = model.network.autoencoder
    together = EdgeFit(autoencoder, latents, images, masks, cells)(others)
    alone = EdgeFit(autoencoder, latents[1:2], images[1:2], masks[1:2], cells[1:2])(others[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-4)
    known = ~cells.expand_as(others)
    assert torch.equal(together[known], others[known])
    assert not torch.equal(together, others)


def test_seam_closes_a_step_and_is_one_cell_wide():
    mask = torch.zeros(1, 1, 12, 40, dtype=torch.bool)
    mask[..., 10:] = True
    known, sampled = torch.full((1, 1, 12, 40), 0.3), torch.full((1, 1, 12, 40), 0.7)
    row = joined(known, sampled, mask, 4)[0, 0, 6]
    torch.testing.assert_close(row[:10], torch.full((10,), 0.3))
    torch.testing.assert_close(row[10:14], 0.7 - 0.4 * torch.tensor([4, 3, 2, 1]) / 5)
    torch.testing.assert_close(row[14:], torch.full((26,), 0.7))


def test_seam_follows_every_pixel_of_the_edge():
    mask = torch.zeros(1, 1, 32, 40, dtype=torch.bool)
    mask[..., 10:] = True
    rows = torch.arange(32.0)[:, None]
    known = (0.5 + 0.2 * (2 * torch.pi * rows / 8).sin()).expand(1, 1, 32, 40)
    made = joined(known, torch.full((1, 1, 32, 40), 0.5), mask, 8)
    step = (made[..., 10] - made[..., 9]).abs().mean()
    assert step < 0.6 * (known - 0.5).abs().mean()  # 0.70 where blocks of pixels alone are continued


@pytest.mark.parametrize("size", [(16, 24), (13, 7), (1, 5)])
def test_fill_continues_what_surrounds_it(size):
    mask = torch.zeros(1, 1, *size, dtype=torch.bool)
    mask[..., size[0] // 3 : size[0] // 2 + 1, size[1] // 3 : size[1] // 2 + 1] = True
    plain = torch.full((1, 2, *size), 0.4)
    hidden = torch.where(mask, torch.tensor(9.0), plain)
    torch.testing.assert_close(filled(hidden, mask), plain)
    noise = torch.rand(1, 2, *size)
    full = filled(noise, mask)
    assert torch.equal(full[:, :, ~mask[0, 0]], noise[:, :, ~mask[0, 0]])
    assert noise.min() <= full.min()
    assert full.max() <= noise.max()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mask": torch.zeros(16, 24)}, "mask of image 0 is empty"),
        ({"mask": torch.ones(16, 24)}, "covers the whole image"),
        ({"mask": torch.ones(16, 16)}, r"mask must be \(16, 24\) or \(3, 1, 16, 24\), .* received shape \(16, 16\)"),
        ({"mask": torch.ones(2, 1, 16, 24)}, r"received shape \(2, 1, 16, 24\)"),
        ({"label": 5}, "label 5 is not a class"),
        ({"repeats": 0}, "repeats must be"),
        ({"seed": -1}, "seed must be"),
        ({"images": torch.zeros(1, 1, 8, 8)}, "images must be a tensor"),
    ],
)
def test_bad_input_is_refused(model, images, mask, changes, words):
    with pytest.raises(ValueError, match=words):
        inpaint(model, **{"images": images, "mask": mask, "label": 0, **changes})


def test_empty_mask_of_one_image_is_named(model, images, mask):
    masks = mask.expand(3, 1, 16, 24).clone()
    masks[1] = False
    with pytest.raises(ValueError, match="mask of image 1 is empty"):
        inpaint(model, images, masks, 0)
