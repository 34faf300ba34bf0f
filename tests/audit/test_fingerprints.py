import pytest
import torch

from medfusion_monai.audit.fingerprints import Prints, each_once, fingerprint, flipped


def random_images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_fingerprint_has_mean_zero_and_variance_one():
    fine = fingerprint(random_images(3, 1, 80, 100)).float()
    assert fine.shape == (3, 64, 64)
    assert torch.allclose(fine.mean(dim=(1, 2)), torch.zeros(3), atol=1e-3)
    assert torch.allclose(fine.square().mean(dim=(1, 2)), torch.ones(3), atol=1e-2)


def test_brightness_and_contrast_leave_the_fingerprint_as_it_is():
    images = random_images(2, 1, 96, 96)
    assert torch.allclose(fingerprint(0.5 * images + 0.3).float(), fingerprint(images).float(), atol=5e-3)


def test_image_of_one_colour_has_a_fingerprint_of_zeros():
    assert fingerprint(torch.full((1, 3, 40, 40), 0.7)).abs().max() < 1e-3


def test_gray_image_stored_as_rgb_has_the_same_fingerprint():
    images = random_images(2, 1, 64, 64)
    assert torch.allclose(fingerprint(images.expand(-1, 3, -1, -1)).float(), fingerprint(images).float(), atol=2e-3)


def test_mirrored_image_has_the_mirrored_fingerprint():
    images = random_images(2, 1, 64, 64)
    turned = flipped(fingerprint(images), (-1,)).float()
    assert torch.allclose(fingerprint(images.flip(-1)).float(), turned, atol=5e-3)


@pytest.mark.parametrize("images", [torch.zeros(1, 2, 8, 8), torch.zeros(8, 8), torch.full((1, 1, 8, 8), torch.nan)])
def test_what_is_no_image_is_refused(images):
    with pytest.raises(ValueError, match="images have"):
        fingerprint(images)


def test_repeated_fingerprints_are_kept_once_at_their_first_place():
    fine = fingerprint(random_images(3, 1, 64, 64))
    prints = Prints(fine[[0, 1, 0, 2, 1]], None, torch.arange(5))
    assert each_once(prints).tolist() == [0, 1, 3]
