import pytest
import torch

from medfusion_monai.baselines.gan import Gan
from medfusion_monai.baselines.gan_networks import GanGenerator
from medfusion_monai.baselines.gan_sampler import GanSampler
from medfusion_monai.runtime.errors import WeightsError


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Gan(GanGenerator([16, 24], [8, 8, 8]), ["a", "b"], [16, 24]).eval()


def test_image_depends_on_its_label_and_seed_and_not_on_its_batch(network):
    sampler = GanSampler()
    images = sampler(torch.tensor([0, 1, 1]), network, seeds=[5, 5, 6])
    assert images.shape == (3, 1, 16, 24)
    assert images.min() >= 0
    assert images.max() <= 1
    assert not torch.allclose(images[0], images[1])
    assert not torch.allclose(images[1], images[2])
    torch.testing.assert_close(sampler(torch.tensor([1]), network, seeds=[5]), images[1:2])


def test_images_are_refused_in_place_of_labels(network):
    with pytest.raises(ValueError, match="samples images from labels"):
        GanSampler()(torch.rand(1, 1, 16, 24), network)


@pytest.mark.parametrize("part", ["autoencoder", "unet"])
def test_parts_of_a_diffusion_model_are_refused_with_what_to_do(network, part):
    with pytest.raises(WeightsError, match="is a GAN, which has no .* Use the weights of a diffusion model"):
        getattr(network, part)


def test_reconstructing_an_image_is_refused(network):
    with pytest.raises(WeightsError, match="nothing that reconstructs images"):
        network(torch.rand(1, 1, 16, 24))
