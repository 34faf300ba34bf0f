import copy
import functools
import importlib.metadata
import shutil
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, run
from tiny_training import TINY_NETWORKS

from medfusion_monai.demo.phantoms.families import prepare_phantoms
from medfusion_monai.demo.phantoms.network import train_phantom_features
from medfusion_monai.runtime.locks import leave_folders
from medfusion_monai.training.preflight import machine

CONFIGS = Path(__file__).parents[2] / "bundles" / "medfusion_cxr" / "configs"

TINY = {
    **TINY_NETWORKS,
    "autoencoder_batch_size": 4,
    "diffusion_batch_size": 4,
    "autoencoder_steps": 4,
    "autoencoder_val_interval": 2,
    "diffusion_steps": 4,
    "diffusion_val_interval": 2,
    "num_inference_steps": 3,
    "precision": "float32",  # the same on machines with and without bfloat16
    "device": "$torch.device('cpu')",
}


SAMPLING = {name: TINY[name] for name in ("num_inference_steps", "precision", "device")}
MEASURING = {name: TINY[name] for name in ("precision", "device")}
"""What the weights do not say themselves."""
MEASURED_SIZE = [48, 48]
"""The smallest that MS-SSIM takes."""


def run_bundle(run_id, config="train.yaml", configs=CONFIGS, overlays=None, **overrides):
    """Run a config of a bundle, the chest's by default, in this process; a training is that of demo.yaml, and tiny."""
    own = {"inference.yaml": SAMPLING, "evaluate.yaml": MEASURING, "edit.yaml": MEASURING}.get(config)
    if own is None:  # tests of the trial step ask for it
        own, overlays = TINY | {"trial_step": False}, ("demo.yaml",) if overlays is None else overlays
    files = [str(configs / name) for name in (config, *(overlays or ()))]
    try:
        return run(run_id=run_id, config_file=files, **(own | overrides))
    finally:  # as the end of its process would
        leave_folders()


@pytest.fixture(scope="session", autouse=True)
def _read_once():
    """Keep what each of hundreds of runs would read again: unchanged configs, and versions of packages."""
    load = ConfigParser.load_config_file

    @functools.cache
    def loaded(path, *_):
        return load(path)

    def load_once(filepath, **kwargs):
        file = Path(filepath).stat() if filepath and Path(filepath).is_file() and not kwargs else None
        if file is None:
            return load(filepath, **kwargs)
        return copy.deepcopy(loaded(str(filepath), file.st_mtime_ns, file.st_size))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigParser, "load_config_file", load_once)
        patch.setattr(machine, "version", functools.cache(importlib.metadata.version))
        yield


@pytest.fixture(scope="session")
def bundle():
    return run_bundle


@pytest.fixture(scope="session")
def dataset_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    prepare_phantoms(folder, num_images=40, size=32, seed=0)
    return folder


@pytest.fixture(scope="session")
def trained(dataset_dir, tmp_path_factory):
    """A folder with ``models`` and ``runs`` of a tiny training of both phases."""
    folder = tmp_path_factory.mktemp("trained")
    run_bundle("training", dataset_dir=str(dataset_dir), **folders(folder))
    return folder


def folders(folder):
    return {"model_dir": str(folder / "models"), "output_dir": str(folder / "runs")}


@pytest.fixture(scope="session")
def lively(trained, tmp_path_factory):
    """A models folder whose weights give images with contrast and a strong effect of the label."""
    state = torch.load(trained / "models" / "model.pt", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name in ("autoencoder.conv_out.weight", "unet.conv_out.weight", "unet.class_embedding.weight"):
        state[name] = torch.randn(state[name].shape, generator=generator)
    folder = tmp_path_factory.mktemp("lively")
    torch.save(state, folder / "model.pt")
    shutil.copy(trained / "models" / "model.json", folder)
    return folder


@pytest.fixture(scope="session")
def features(tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "features.pt"
    train_phantom_features("cxr", path, num_images=32, steps=4)
    return f"phantoms:{path}"


@pytest.fixture(scope="session")
def samples_dir(lively, tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    common = {"model_dir": str(lively), "image_size": MEASURED_SIZE, "num_samples": 6}
    run_bundle("inference", "inference.yaml", output_dir=str(folder), **common)
    return folder
