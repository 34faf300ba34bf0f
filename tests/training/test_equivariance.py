import numpy as np
import pytest
import torch

from medfusion_monai.networks.autoencoder import Autoencoder
from medfusion_monai.training.equivariance import SCALES, LatentTransform, check_equivariance, draw_transform
from medfusion_monai.training.prepare_batch import AutoencoderPrepareBatch

CPU = torch.device("cpu")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("turns", range(4))
def test_latents_and_images_change_alike(scale, turns):
    """Means of blocks of pixels of a smooth image are equivariant themselves."""
    coarse = torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(coarse, (96, 128), mode="bilinear")
    latents = torch.nn.functional.avg_pool2d(image, 8)
    transform = LatentTransform(scale, turns)
    changed, target = transform(latents), transform.of_images(image, 8)
    assert target.shape[-2:] == tuple(8 * side for side in changed.shape[-2:])
    means = torch.nn.functional.avg_pool2d(target, 8)
    assert (means - changed).abs().mean() < 0.1 * latents.std(), "a wrong turn differs by 1.2"
    if turns:
        assert changed.shape != latents.shape or not torch.allclose(changed, latents, atol=0.01)


def test_full_scale_without_a_turn_changes_nothing():
    latents = torch.randn(2, 3, 5, 7)
    assert torch.equal(LatentTransform(1.0, 0)(latents), latents)


def test_turns_go_the_same_way_for_odd_sides():
    corner = torch.zeros(1, 1, 3, 5)
    corner[..., 0, 0] = 1.0
    image = corner.repeat_interleave(2, 2).repeat_interleave(2, 3)
    transform = LatentTransform(1.0, 1)
    assert transform(corner)[0, 0, -1, 0] == 1.0
    assert torch.equal(transform.of_images(image, 2)[..., ::2, ::2], transform(corner))


def test_share_of_transforms_is_the_probability_and_depends_on_the_seed_alone():
    drawn = [draw_transform(np.random.default_rng(seed), 0.3) for seed in range(2000)]
    share = sum(transform is not None for transform in drawn) / len(drawn)
    assert abs(share - 0.3) < 0.04
    assert drawn == [draw_transform(np.random.default_rng(seed), 0.3) for seed in range(2000)]
    assert {transform.scale for transform in drawn if transform} == set(SCALES)
    assert {transform.turns for transform in drawn if transform} == {0, 1, 2, 3}
    assert draw_transform(np.random.default_rng(0), 0.0) is None


def test_batch_has_changed_targets_and_unchanged_inputs():
    network = Autoencoder(latent_channels=2, channels=(8, 8, 8))
    prepare = AutoencoderPrepareBatch(network, equivariance=1.0)
    plain = AutoencoderPrepareBatch(network)
    for seed in range(20):
        batch = {"image": torch.rand(2, 1, 32, 48), "seed": [seed, seed + 100]}
        inputs, target, _, keywords = prepare(batch, CPU)
        same, _, _, without = plain(batch, CPU)
        assert torch.equal(inputs, same)
        assert torch.equal(keywords["noise"], without["noise"]), "the noise does not depend on the key"
        output = network(inputs, **keywords)
        assert output.reconstruction.shape == target.shape
        assert torch.equal(target, keywords["latent_transform"].of_images(inputs, 4))


@pytest.mark.parametrize("share", [-0.1, 1.5, "half"])
def test_shares_outside_the_range_are_refused(share):
    with pytest.raises(ValueError, match="share of steps between 0 and 1"):
        check_equivariance(share, (8, 16, 16), 8, 11)


def test_window_that_the_smallest_images_cannot_hold_is_refused():
    check_equivariance(0.5, (8, 8, 8), 8, 11)
    check_equivariance(0.0, (8, 4, 4), 8, 11)
    with pytest.raises(ValueError, match="of 32 pixels down to 8 at half resolution.*ssim_window to 7 or less"):
        check_equivariance(0.5, (8, 4, 6), 8, 11)
    check_equivariance(0.5, (8, 4, 6), 8, 7)


@pytest.mark.parametrize("side", range(2, 20))
def test_check_knows_the_size_that_a_step_has(side):
    image = torch.rand(1, 1, 8 * side, 8 * side)
    smallest = LatentTransform(min(SCALES), 0).of_images(image, 8).shape[-1] // 2
    check_equivariance(1.0, (8, side, side), 8, smallest)
    with pytest.raises(ValueError, match="does not fit"):
        check_equivariance(1.0, (8, side, side), 8, smallest + 1)
