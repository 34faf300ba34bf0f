import numpy as np
import pytest
import torch
from ignite.engine import Engine
from PIL import Image
from torch import nn

from medfusion_monai.diffusion.inferer import LatentDiffusionSampler
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.networks.autoencoder import Autoencoder
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.networks.unet import UNet
from medfusion_monai.training.handlers.image_grid import (
    ImageGrid,
    grid_of_rows,
    reconstruction_rows,
    sample_rows,
    save_picture,
)


@pytest.fixture
def network():
    torch.manual_seed(0)
    autoencoder = Autoencoder(latent_channels=2, channels=(8, 8))
    unet = UNet(2, channels=(8, 8), embedding_channels=16, norm_groups=4)
    nn.init.normal_(unet.conv_out.weight, std=0.3)  # both start at zero, which would hide every difference
    nn.init.normal_(autoencoder.conv_out.weight, std=0.1)
    return Medfusion(autoencoder, unet)


@pytest.fixture
def inferer():
    return LatentDiffusionSampler(NoiseSchedule(), (2, 4, 4), num_inference_steps=3)


def modes(network):
    return [module.training for module in network.modules()]


def test_picture_holds_rounded_values(tmp_path):
    values = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 100.6 / 255, 254.4 / 255, 254.9 / 255, 1.2, -0.3])
    save_picture(values.reshape(1, 2, 4).expand(3, 2, 4), tmp_path / "new" / "picture.png")
    read = np.asarray(Image.open(tmp_path / "new" / "picture.png"))
    assert read.shape == (2, 4, 3)
    for channel in range(3):
        assert read[..., channel].flatten().tolist() == [0, 0, 1, 101, 254, 255, 255, 0]


def test_channels_of_a_picture_keep_their_order(tmp_path):
    save_picture(torch.tensor([1.0, 0.0, 0.2])[:, None, None].expand(3, 2, 2), tmp_path / "picture.png")
    assert np.asarray(Image.open(tmp_path / "picture.png"))[0, 0].tolist() == [255, 0, 51]


def test_rows_are_laid_out_with_a_white_frame():
    rows = [torch.full((3, 1, 4, 5), 0.25), torch.stack([torch.full((1, 4, 5), k / 10) for k in range(3)])]
    grid = grid_of_rows(rows)
    assert grid.shape == (3, 2 * (4 + 2) + 2, 3 * (5 + 2) + 2)
    assert torch.equal(grid[:, 2:6, 2:7], torch.full((3, 4, 5), 0.25))
    for column in range(3):
        left = 2 + 7 * column
        assert torch.equal(grid[:, 8:12, left : left + 5], torch.full((3, 4, 5), column / 10)), column
    assert (grid[:, :2] == 1).all()
    assert (grid[:, :, 7:9] == 1).all()


def test_shorter_row_is_filled_with_white():
    grid = grid_of_rows([torch.zeros(3, 3, 4, 4), torch.zeros(1, 3, 4, 4)], padding=1)
    assert grid.shape == (3, 11, 16)
    assert (grid[:, 6:10, 1:5] == 0).all()
    assert (grid[:, 6:10, 5:] == 1).all()


def test_pictures_are_written_at_the_end_of_epochs_under_their_step(tmp_path):
    drawn = []

    def draw():
        drawn.append(len(drawn))
        return [torch.full((2, 1, 4, 4), 0.5)]

    trainer = Engine(lambda engine, batch: None)
    ImageGrid(draw, tmp_path, "samples", interval=2).attach(trainer)
    trainer.run([0, 1, 2], max_epochs=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples_0000006.png", "samples_0000012.png"]
    assert drawn == [0, 1]
    assert Image.open(tmp_path / "samples_0000006.png").size == (14, 8)


def test_picture_goes_to_tensorboard_as_well(tmp_path):
    class Writer:
        def __init__(self):
            self.calls = []

        def add_image(self, name, grid, step):
            self.calls.append((name, grid, step))

    writer, rows = Writer(), [torch.rand(2, 3, 4, 4)]
    trainer = Engine(lambda engine, batch: None)
    ImageGrid(lambda: rows, tmp_path, "samples", writer=writer).attach(trainer)
    trainer.run([0, 1], max_epochs=1)
    ((name, grid, step),) = writer.calls
    assert (name, step) == ("samples", 2)
    assert torch.equal(grid, grid_of_rows(rows))


def test_reconstruction_rows_are_original_reconstruction_and_enlarged_difference(network):
    images = torch.rand(2, 1, 8, 8)
    original, reconstruction, difference = reconstruction_rows(network.autoencoder, images)
    with torch.no_grad():
        expected = (network.autoencoder.reconstruct(images * 2 - 1) / 2 + 0.5).clamp(0, 1)
    assert torch.equal(original, images)
    torch.testing.assert_close(reconstruction, expected)
    torch.testing.assert_close(difference, (4 * (expected - images).abs()).clamp(max=1))
    assert 0 < difference.mean() < 1


def test_sample_rows_are_the_same_each_time_one_per_class(network, inferer):
    rows = sample_rows(network, inferer, num_classes=2, num_samples=3)
    torch.manual_seed(99)
    again = sample_rows(network, inferer, num_classes=2, num_samples=3)
    assert [row.shape for row in rows] == [(3, 1, 8, 8)] * 2
    for row, same in zip(rows, again, strict=True):
        assert torch.equal(row, same)
        assert not torch.equal(row[0], row[1])
    assert not torch.equal(rows[0], rows[1])


def test_sample_rows_of_another_seed_differ(network, inferer):
    rows = [sample_rows(network, inferer, 1, num_samples=1, seed=seed)[0] for seed in (0, 1)]
    assert not torch.equal(*rows)


@pytest.mark.parametrize("training", [True, False])
def test_mode_of_each_module_is_restored(network, inferer, training):
    network.train(training)
    network.autoencoder.eval()  # frozen, while the rest is trained
    before = modes(network)
    reconstruction_rows(network.autoencoder, torch.rand(1, 1, 8, 8))
    sample_rows(network, inferer, 1, num_samples=1)
    assert modes(network) == before


def test_pictures_are_drawn_in_evaluation_mode():
    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.seen = nn.Parameter(torch.zeros(1)), []

        def reconstruct(self, image):
            self.seen.append((self.training, torch.is_grad_enabled()))
            return image

    spy = Spy()
    reconstruction_rows(spy, torch.rand(1, 1, 4, 4))
    assert spy.seen == [(False, False)]
    assert spy.training
