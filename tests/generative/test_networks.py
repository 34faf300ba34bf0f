"""The networks of monai-generative in our trainers, by the bundle's configs. ``make test-generative`` runs this."""

from pathlib import Path

import pytest
import torch
from monai.bundle import run
from PIL import Image

from medfusion_monai.demo.phantoms.families import prepare_phantoms

nets = pytest.importorskip("generative.networks.nets", reason="needs monai-generative", exc_type=ImportError)

CONFIGS = Path(__file__).parents[2] / "bundles" / "medfusion_cxr" / "configs"
AUTOENCODER = {
    "_target_": "generative.networks.nets.AutoencoderKL",
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 8,
    "num_channels": [8, 8, 16, 16],
    "num_res_blocks": 1,
    "attention_levels": [False] * 4,
    "norm_num_groups": 8,
}
UNET = {
    "_target_": "generative.networks.nets.DiffusionModelUNet",
    "spatial_dims": 2,
    "in_channels": 8,
    "out_channels": 8,
    "num_channels": [16, 16, 32],
    "num_res_blocks": 1,
    "attention_levels": [False, True, True],
    "num_head_channels": [16, 16, 32],
    "norm_num_groups": 8,
    "num_class_embeds": 3,
}
NETWORK = {
    "_target_": "medfusion_monai.networks.Medfusion",
    "autoencoder": {"_target_": "medfusion_monai.networks.MonaiAutoencoder", "network": AUTOENCODER},
    "unet": {"_target_": "medfusion_monai.networks.MonaiUNet", "network": UNET},
    "class_names": ["no_cardiomegaly", "cardiomegaly"],
    "image_size": [32, 32],
}
TRAINING = {
    "autoencoder#network": AUTOENCODER,
    "unet#network": UNET,
    "image_size": [32, 32],
    "autoencoder_channels": [8, 8, 16, 16],
    "unet_channels": [16, 16, 16, 32],
    "autoencoder_batch_size": 4,
    "diffusion_batch_size": 4,
    "autoencoder_steps": 4,
    "autoencoder_val_interval": 2,
    "diffusion_steps": 4,
    "diffusion_val_interval": 2,
    "num_inference_steps": 3,
}
CPU = {"device": "$torch.device('cpu')"}


def test_both_phases_train_them_and_inference_samples_them_where_a_config_names_them(tmp_path):
    prepare_phantoms(tmp_path / "data", num_images=20, size=32, seed=0)
    models = tmp_path / "models"
    places = {"dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "runs"), "model_dir": str(models)}
    files = [str(CONFIGS / name) for name in ("train.yaml", "demo.yaml", "monai_networks.yaml")]
    run(run_id="training", config_file=files, **TRAINING, **places, **CPU)
    sampling = {"output_dir": str(tmp_path / "samples"), "model_dir": str(models), "num_samples": 2, **CPU}
    run(run_id="inference", config_file=str(CONFIGS / "inference.yaml"), network_def=NETWORK, **sampling)
    model = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    expected = nets.AutoencoderKL(2, 1, 1, (1,) * 4, (8, 8, 16, 16), (False,) * 4, 8, 8).state_dict().keys()
    assert {f"autoencoder.network.{name}" for name in expected} < model.keys()
    assert torch.all(model["autoencoder.latent_std"] > 0)
    assert model["unet.network.out.2.conv.weight"].abs().sum() > 0  # starts at zero
    samples = list((tmp_path / "samples").glob("*.png"))
    assert [Image.open(path).size for path in samples] == [(32, 32)] * 4
