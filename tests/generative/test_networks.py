"""The networks of monai-generative in our trainers, by the bundle's configs. ``make test-generative`` runs this."""

from pathlib import Path

import pytest
import torch
from monai.bundle import run
from PIL import Image

from medfusion_monai.data import prepare_phantoms

nets = pytest.importorskip("generative.networks.nets", reason="needs monai-generative", exc_type=ImportError)

CONFIGS = Path(__file__).parents[2] / "bundles" / "medfusion_cxr" / "configs"
AUTOENCODER = {
    "_target_": "generative.networks.nets.AutoencoderKL",
    "spatial_dims": 2,
    "in_channels": "@image_channels",
    "out_channels": "@image_channels",
    "latent_channels": "@latent_channels",
    "num_channels": "@autoencoder_channels",
    "num_res_blocks": 1,
    "attention_levels": "$[False] * len(@autoencoder_channels)",
    "norm_num_groups": 8,
}
UNET = {
    "_target_": "generative.networks.nets.DiffusionModelUNet",
    "spatial_dims": 2,
    "in_channels": "@latent_channels",
    "out_channels": "@latent_channels",
    "num_channels": "$@unet_channels[1:]",
    "num_res_blocks": 1,
    "attention_levels": "$[level > 0 for level in range(len(@unet_channels) - 1)]",
    "num_head_channels": "$@unet_channels[1:]",
    "norm_num_groups": 8,
    "num_class_embeds": "$len(@class_names) + 1",
}
SETTINGS = {
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
    "device": "$torch.device('cpu')",
}


def test_both_phases_train_them_and_inference_samples_them(tmp_path):
    prepare_phantoms(tmp_path / "data", num_images=20, size=32, seed=0)
    for run_id, config, places in (
        ("training", "train.yaml", {"dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "runs")}),
        ("inference", "inference.yaml", {"output_dir": str(tmp_path / "samples"), "num_samples": 2}),
    ):
        files = [str(CONFIGS / name) for name in (config, "demo.yaml", "monai_networks.yaml")]
        run(run_id=run_id, config_file=files, model_dir=str(tmp_path / "models"), **SETTINGS, **places)
    model = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    expected = nets.AutoencoderKL(2, 1, 1, (1,) * 4, (8, 8, 16, 16), (False,) * 4, 8, 8).state_dict().keys()
    assert {f"autoencoder.network.{name}" for name in expected} < model.keys()
    assert torch.all(model["autoencoder.latent_std"] > 0)
    assert model["unet.network.out.2.conv.weight"].abs().sum() > 0  # starts at zero
    samples = list((tmp_path / "samples").glob("*.png"))
    assert [Image.open(path).size for path in samples] == [(32, 32)] * 4
