from pathlib import Path

import pytest
import torch

from medfusion_monai.configs import read_configs
from medfusion_monai.export import export_bundle
from medfusion_monai.weights.state_dict import save_weights

BUNDLES = Path(__file__).parents[2] / "bundles"
TINY = {
    "image_size": [16, 24],
    "autoencoder_channels": [8, 16],
    "unet_channels": [16, 16, 32],
    "unet_embedding_channels": 32,
    "unet_norm_groups": 8,
    "num_inference_steps": 4,
    "guidance_scale": 2.0,
    "eta": 0.0,
}


@pytest.fixture(scope="session")
def settings():
    return TINY


@pytest.fixture(scope="session")
def parser():
    """The chest bundle's configs with tiny networks, none of whose weights are zero."""
    parser = read_configs(BUNDLES / "medfusion_cxr", ["inference.yaml"], TINY)
    network, source = parser.get_parsed_content("network_def").eval(), torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.data += 0.05 * torch.randn(weight.shape, generator=source)
    network.autoencoder.set_latent_statistics(torch.linspace(-1, 1, 8), torch.linspace(0.5, 2, 8))
    return parser


@pytest.fixture(scope="session")
def network(parser):
    return parser.get_parsed_content("network_def")


@pytest.fixture(scope="session")
def model_file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "model.pt"
    save_weights(network, path)
    return path


@pytest.fixture(scope="session")
def exported(model_file, tmp_path_factory):
    """Gives the folder of the tiny model's export to a format, made once."""
    folders = {}

    def export(file_format):
        if file_format not in folders:
            folders[file_format] = tmp_path_factory.mktemp(file_format)
            export_bundle(BUNDLES / "medfusion_cxr", model_file, folders[file_format], file_format, (), TINY)
        return folders[file_format]

    return export
