import pytest
import torch
from torch import nn

from medfusion_monai.networks.autoencoder import Autoencoder, DiagonalGaussian
from medfusion_monai.training.latent_statistics import measure_latent_statistics


class KnownPosterior(nn.Module):
    """An autoencoder whose posterior is N(x, 1/4) in the first channel and N(1 - 3 x, 4) in the second."""

    latent_channels = 2

    def encode(self, image):
        assert not self.training
        mean = torch.cat([image, 1 - 3 * image], dim=1)
        variance = torch.tensor([0.25, 4.0])[:, None, None].expand_as(mean)
        return DiagonalGaussian(torch.cat([mean, variance.log()], dim=1))


def even_images(values):
    return {"image": torch.tensor(values)[:, None, None, None].expand(-1, 1, 4, 4)}


def test_statistics_have_their_closed_form():
    mean, std = measure_latent_statistics(KnownPosterior(), [even_images([0.0, 0.25, 0.5]), even_images([1.0])])
    seen = torch.tensor([-1.0, -0.5, 0.0, 1.0])  # what the network sees, each image counting once
    variance = seen.var(correction=0)
    torch.testing.assert_close(mean, torch.stack([seen.mean(), 1 - 3 * seen.mean()]))
    torch.testing.assert_close(std, torch.stack([variance + 0.25, 9 * variance + 4.0]).sqrt())
    assert mean.dtype == std.dtype == torch.float32


def test_normalized_latents_of_the_training_set_have_unit_variance():
    torch.manual_seed(0)
    autoencoder = Autoencoder(latent_channels=3, channels=(8, 16))
    nn.init.normal_(autoencoder.to_moments[1].weight, std=0.7)
    autoencoder.to_moments[1].bias.data = torch.tensor([5.0, -2.0, 0.0, 1.0, -4.0, -8.0])
    images = torch.rand(40, 1, 16, 16).square()
    batches = [{"image": batch} for batch in images.split(16)]
    before, _ = measure_latent_statistics(autoencoder, batches)
    assert before.abs().max() > 1
    autoencoder.set_latent_statistics(*measure_latent_statistics(autoencoder, batches))
    with torch.no_grad():
        latents = torch.stack([autoencoder.encode_stage_2_inputs(images * 2 - 1) for _ in range(20)])
    torch.testing.assert_close(latents.mean(dim=(0, 1, 3, 4)), torch.zeros(3), rtol=0, atol=0.02)
    torch.testing.assert_close(latents.std(dim=(0, 1, 3, 4)), torch.ones(3), rtol=0, atol=0.02)


def test_statistics_do_not_depend_on_the_batches():
    torch.manual_seed(0)
    autoencoder = Autoencoder(latent_channels=2, channels=(8, 16))
    images = torch.rand(7, 1, 16, 16)
    one = measure_latent_statistics(autoencoder, [{"image": images}])
    many = measure_latent_statistics(autoencoder, [{"image": batch} for batch in images.split(3)])
    torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-6)


def test_no_images_are_an_error():
    with pytest.raises(ValueError, match="no images to measure the latents of: check the datalist"):
        measure_latent_statistics(KnownPosterior(), [])
