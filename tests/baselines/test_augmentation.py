"""Each kind of augmentation against what it should do to an image, and its derivatives."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from medfusion_monai.baselines.augmentation import DRAWS, Augmentation, draw


def always(kind, **amounts):
    """Return an augmentation that is always applied, and numbers that are 0.5 but for those of these places."""
    draws = torch.full((2, DRAWS), 0.5)
    for place, value in amounts.items():
        draws[:, int(place[1:])] = value
    return Augmentation([kind], (1.0, 1.0)), draws


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_nothing_happens_at_probability_zero(images):
    assert Augmentation()(images, torch.rand(2, DRAWS), progress=0.0) is images


def test_probability_rises_along_the_ramp():
    augmentation, images = Augmentation(["flip"], (0.0, 0.8)), torch.arange(4.0).expand(1000, 1, 4, 4)
    draws = draw(np.random.default_rng(0).spawn(1000))
    shares = [(augmentation(images, draws, at)[:, 0, 0, 0] == 3).float().mean().item() for at in (0.5, 1.0)]
    assert shares == pytest.approx([0.2, 0.4], abs=0.05)  # half of those that are drawn are flipped


def test_flip_mirrors_left_and_right(images):
    augmentation, draws = always("flip", _4=0.2)
    assert torch.equal(augmentation(images, draws), images.flip(-1))
    draws[:, 4] = 0.7
    assert torch.equal(augmentation(images, draws), images)


def test_shift_moves_by_whole_pixels_and_repeats_the_border(images):
    augmentation, draws = always("shift", _5=1.0, _6=0.0)  # down by an eighth of 16, left by an eighth of 24
    moved = augmentation(images, draws)
    assert torch.equal(moved[:, :, 2:, :-3], images[:, :, :-2, 3:])
    assert torch.equal(moved[:, :, 0, :-3], images[:, :, 0, 3:])


def test_cutout_blanks_a_square_of_half_the_sides(images):
    augmentation, draws = always("cutout")
    cut = augmentation(images, draws)
    assert torch.count_nonzero(cut[:, :, 4:12, 6:18]) == 0
    cut[:, :, 4:12, 6:18] = images[:, :, 4:12, 6:18]
    assert torch.equal(cut, images)


def test_brightness_and_contrast_change_mean_and_spread(images):
    augmentation, draws = always("brightness", _9=1.0, _10=1.0)
    changed = augmentation(images, draws)
    torch.testing.assert_close(changed.mean((1, 2, 3)), images.mean((1, 2, 3)) + 0.2)
    torch.testing.assert_close(changed.std((1, 2, 3)), images.std((1, 2, 3)) * 2**0.5)


def test_first_and_second_derivatives_are_right():
    augmentation = Augmentation(["flip", "shift", "cutout", "brightness"], (1.0, 1.0))
    draws = torch.tensor([[0.5] * 4 + [0.1, 0.9, 0.2, 0.4, 0.4, 0.8, 0.3]], dtype=torch.float64)
    image = torch.rand(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: augmentation(x, draws).square(), image)
    assert gradgradcheck(lambda x: augmentation(x, draws).square(), image)


def test_numbers_of_an_image_do_not_depend_on_its_batch():
    whole = draw([np.random.default_rng(seed) for seed in (1, 2, 3)])
    assert whole.shape == (3, DRAWS)
    assert torch.equal(whole[1:2], draw([np.random.default_rng(2)]))


@pytest.mark.parametrize("kinds", [["rotate"], "flip", None])
def test_unknown_kind_is_refused(kinds):
    with pytest.raises(ValueError, match="gan_augmentations must be a list of some of flip, shift"):
        Augmentation(kinds)


def test_probability_beyond_one_is_refused():
    with pytest.raises(ValueError, match="gan_augmentation_probability must be two numbers from 0 to 1"):
        Augmentation(probability=(0.0, 1.5))
