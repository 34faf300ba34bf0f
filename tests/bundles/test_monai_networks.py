"""The configs with monai_networks.yaml: MONAI's networks in place of ours by YAML alone."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from PIL import Image

from medfusion_monai.bundle.parser import read_files
from medfusion_monai.runtime.errors import first_cause

BUNDLE = Path(__file__).parents[2] / "bundles" / "medfusion_cxr"
OVERLAYS = ("demo.yaml", "monai_networks.yaml")


@pytest.fixture(scope="module")
def folder(bundle, dataset_dir, tmp_path_factory):
    """A folder with ``models`` and ``runs`` of a tiny training of both phases, the adversarial one among them."""
    folder = tmp_path_factory.mktemp("monai_networks")
    places = {"model_dir": str(folder / "models"), "output_dir": str(folder / "runs")}
    bundle("training", overlays=OVERLAYS, dataset_dir=str(dataset_dir), adversarial_start=1, **places)
    return folder


def test_both_phases_train_the_networks_of_monai(folder):
    model = torch.load(folder / "models" / "model.pt", weights_only=True)
    networks = {".".join(name.split(".")[:3]) for name in model}
    assert {"autoencoder.network.quant_conv_mu", "unet.network.middle_block"} < networks
    assert model["unet.network.class_embedding.weight"].shape[0] == 3  # two classes and 'no label'
    assert torch.all(model["autoencoder.latent_std"] > 0)
    assert not torch.equal(model["autoencoder.latent_std"], torch.ones(8))
    for phase, name in (
        ("autoencoder", "network.decoder.blocks.0.conv.weight"),
        ("diffusion", "network.out.2.conv.weight"),
    ):
        state = torch.load(folder / "runs" / "checkpoints" / f"{phase}_training.pt", weights_only=True)
        moments = state["objects"]["optimizer"]["state"]
        assert state["iteration"] == 4
        assert state["objects"]["network"][name].abs().sum() > 0
        assert all(torch.isfinite(entry["exp_avg"]).all() for entry in moments.values())


def test_inference_samples_them_by_label(bundle, folder, tmp_path):
    state = torch.load(folder / "models" / "model.pt", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    state = {  # so short a training leaves no contrast
        name: value + 0.1 * torch.randn(value.shape, generator=generator) if "network" in name else value
        for name, value in state.items()
    }
    torch.save(state, tmp_path / "model.pt")
    places = {"model_dir": str(tmp_path), "output_dir": str(tmp_path / "samples")}
    shutil.copy(folder / "models" / "model.json", tmp_path)
    bundle("inference", "inference.yaml", num_samples=2, guidance_scale=2.0, **places)
    images = [np.asarray(Image.open(path)).astype(int) for path in sorted((tmp_path / "samples").glob("*.png"))]
    assert [image.shape for image in images] == [(32, 32)] * 4
    assert min(image.std() for image in images) > 2
    assert len((tmp_path / "samples" / "manifest.csv").read_text().splitlines()) == 5


def test_reconstructions_are_measured(bundle, folder, dataset_dir, tmp_path):
    places = {"model_dir": str(folder / "models"), "output_dir": str(tmp_path), "dataset_dir": str(dataset_dir)}
    bundle("evaluating", "evaluate.yaml", image_size=[48, 48], **places)
    with open(tmp_path / "metrics.csv", newline="") as file:
        written = {name: float(value) for name, value in csv.reader(file)}
    assert written.keys() == {"ms_ssim", "ssim", "mse", "psnr"}
    assert 0 < written["mse"] < 1


def test_finished_training_goes_on_from_its_checkpoint(bundle, folder, dataset_dir):
    before = torch.load(folder / "models" / "model.pt", weights_only=True)
    places = {"model_dir": str(folder / "models"), "output_dir": str(folder / "runs")}
    bundle("training", overlays=OVERLAYS, dataset_dir=str(dataset_dir), adversarial_start=1, **places)
    after = torch.load(folder / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("config", "kind"), [("train.yaml", "train"), ("inference.yaml", "infer"), ("evaluate.yaml", "infer")]
)
def test_required_properties_are_all_there(config, kind, folder, dataset_dir, tmp_path):
    overlays, models = (OVERLAYS, tmp_path / "m") if kind == "train" else ((), folder / "models")
    files = [str(BUNDLE / "configs" / name) for name in (config, *overlays)]
    places = {"dataset_dir": str(dataset_dir), "output_dir": str(tmp_path / "r"), "model_dir": str(models)}
    workflow = ConfigWorkflow(config_file=files, workflow_type=kind, **places)
    workflow.initialize()
    assert workflow.check_properties() == []
    network = workflow.network_def if kind == "infer" else workflow.parser.get_parsed_content("network_def")
    assert isinstance(network.autoencoder.network, AutoencoderKL)
    assert isinstance(network.unet.network, DiffusionModelUNet)


def test_published_widths_give_networks_of_the_size_that_the_config_says():
    with torch.device("meta"):
        network = read_files(
            [str(BUNDLE / "configs" / name) for name in ("train.yaml", "monai_networks.yaml")], {}
        ).get_parsed_content("network_def")
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (network.autoencoder, network.unet)]
    header = (BUNDLE / "configs" / "monai_networks.yaml").read_text()
    assert f"{sizes[0]:.1f} M and {sizes[1]:.0f} M weights" in header


def test_network_that_disagrees_with_the_config_is_refused_before_the_first_step(bundle, dataset_dir, tmp_path):
    places = {"dataset_dir": str(dataset_dir), "model_dir": str(tmp_path / "m"), "output_dir": str(tmp_path / "r")}
    with pytest.raises(RuntimeError) as caught:
        bundle("training", overlays=OVERLAYS, **places, **{"unet#network#num_class_embeds": 2})
    assert "num_class_embeds=2" in str(first_cause(caught.value))
    assert not list(tmp_path.glob("**/*.pt"))
