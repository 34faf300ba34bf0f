import json
import socket
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from medfusion_monai.networks.diffusers_autoencoder import DiffusersAutoencoder
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.files import file_sha256

diffusers = pytest.importorskip("diffusers", reason="the extra diffusers is not installed")

WEIGHTS = "diffusion_pytorch_model.safetensors"


def vae(in_channels=3, out_channels=3, levels=3):
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        in_channels=in_channels,
        out_channels=out_channels,
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        norm_num_groups=4,
    ).eval()


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def network():
    return vae()


@pytest.fixture
def folder(network, tmp_path):
    network.save_pretrained(tmp_path / "tiny-vae")
    return tmp_path / "tiny-vae"


@torch.no_grad()
def test_reconstruction_is_that_of_the_most_likely_latents(network, folder):
    image = torch.rand(2, 3, 16, 24) * 2 - 1
    expected = network.decode(network.encode(image).latent_dist.mode()).sample
    reconstruction = DiffusersAutoencoder(folder).reconstruct(image)
    torch.testing.assert_close(reconstruction, expected)


@torch.no_grad()
def test_gray_images_are_shown_as_rgb_and_averaged_back(network, folder):
    image = torch.rand(2, 1, 16, 16) * 2 - 1
    expected = network.decode(network.encode(image.repeat(1, 3, 1, 1)).latent_dist.mode()).sample
    reconstruction = DiffusersAutoencoder(folder).reconstruct(image)
    torch.testing.assert_close(reconstruction, expected.mean(dim=1, keepdim=True))


@torch.no_grad()
def test_network_of_gray_images_takes_them_as_they_are(tmp_path):
    network = vae(in_channels=1, out_channels=1)
    network.save_pretrained(tmp_path)
    image = torch.rand(1, 1, 16, 16) * 2 - 1
    expected = network.decode(network.encode(image).latent_dist.mode()).sample
    torch.testing.assert_close(DiffusersAutoencoder(tmp_path).reconstruct(image), expected)


@torch.no_grad()
def test_attention_named_as_in_older_files_is_read(network, folder):
    """The VAEs of Stable Diffusion 1 were written with these names."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(folder / WEIGHTS)
    for new, name in old.items():
        state = {key.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): value for key, value in state.items()}
    assert any("proj_attn" in key for key in state)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    expected = network.decode(network.encode(image).latent_dist.mode()).sample
    torch.testing.assert_close(DiffusersAutoencoder(folder)(image), expected)


def test_name_checksum_and_factor_are_known(folder):
    autoencoder = DiffusersAutoencoder(folder)
    assert autoencoder.name == "tiny-vae"
    assert autoencoder.sha256 == file_sha256(folder / WEIGHTS)
    assert autoencoder.downsampling_factor == 4
    assert not autoencoder.training


@pytest.mark.parametrize(
    ("shape", "message"), [((1, 3, 18, 16), r"\(18, 16\) is not divisible by 4"), ((1, 2, 16, 16), "2 channels")]
)
def test_image_that_does_not_fit_is_refused(folder, shape, message):
    with pytest.raises(ValueError, match=message):
        DiffusersAutoencoder(folder).reconstruct(torch.zeros(shape))


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(WeightsError, match="nowhere is not a folder"):
        DiffusersAutoencoder(tmp_path / "nowhere")


def test_folder_without_configuration_is_named(folder):
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match="has no config.json"):
        DiffusersAutoencoder(folder)


def test_folder_of_a_whole_model_points_to_its_autoencoder(network, tmp_path):
    network.save_pretrained(tmp_path / "vae")
    with pytest.raises(WeightsError, match=f"give its folder {tmp_path / 'vae'}"):
        DiffusersAutoencoder(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_damaged_configuration_is_named(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError, match="cannot be read as JSON"):
        DiffusersAutoencoder(folder)


def test_another_kind_of_model_is_refused(folder):
    edit_config(folder, _class_name="UNet2DModel")
    with pytest.raises(WeightsError, match="is a UNet2DModel: only AutoencoderKL"):
        DiffusersAutoencoder(folder)


def test_pickled_weights_are_not_read(network, folder):
    (folder / WEIGHTS).unlink()
    network.save_pretrained(folder, safe_serialization=False)
    with pytest.raises(WeightsError, match=r"found diffusion_pytorch_model.bin.*pickles can run code"):
        DiffusersAutoencoder(folder)


def test_damaged_weights_are_named(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])
    with pytest.raises(WeightsError, match="is damaged or does not fit"):
        DiffusersAutoencoder(folder)


def test_weights_that_the_network_lacks_are_not_left_random(folder):
    edit_config(folder, layers_per_block=2)
    with pytest.raises(WeightsError, match="do not fit config.json: [0-9]+ missing"):
        DiffusersAutoencoder(folder)


def test_weights_of_another_shape_are_refused(folder):
    edit_config(folder, latent_channels=8)
    with pytest.raises(WeightsError, match="does not fit config.json"):
        DiffusersAutoencoder(folder)


def test_network_with_other_output_than_input_channels_is_refused(tmp_path):
    vae(out_channels=1).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="has 3 input and 1 output channels"):
        DiffusersAutoencoder(tmp_path)


def test_nothing_is_fetched(folder, monkeypatch):
    def refuse(*args):
        raise AssertionError("the network was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    DiffusersAutoencoder(folder)


def test_missing_package_is_reported_with_how_to_install_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"pip install diffusers"):
        DiffusersAutoencoder(folder)
