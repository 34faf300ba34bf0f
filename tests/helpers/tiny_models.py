"""Models so small that a test can write, load and sample them in a moment."""

import importlib.util
import shutil
import zipfile
from pathlib import Path

import torch

from medfusion_monai.baselines.gan import Gan
from medfusion_monai.baselines.gan_networks import GanGenerator
from medfusion_monai.baselines.gan_sampler import GanSampler
from medfusion_monai.diffusion.inferer import LatentDiffusionSampler
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.networks.autoencoder import Autoencoder
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.networks.unet import UNet
from medfusion_monai.weights.model_info import describe_model, write_model_info
from medfusion_monai.weights.state_dict import save_weights

ROOT = Path(__file__).parents[2]
CLASSES = ("no_cardiomegaly", "cardiomegaly")


def tiny(class_names=CLASSES, channels=1, image_size=(16, 24)):
    """Both networks, the same at each call, none of their weights zero; latents have half the sides of images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder = Autoencoder(channels, channels=[8, 16])
        unet = UNet(channels=[16, 16, 32], num_classes=len(class_names), embedding_channels=32, norm_groups=8)
        network = Medfusion(autoencoder, unet, class_names, image_size).eval()
        for weight in network.parameters():
            weight.data += 0.05 * torch.randn(weight.shape)
    network.autoencoder.set_latent_statistics(torch.linspace(-1, 1, 8), torch.linspace(0.5, 2, 8))
    return network


def smallest(class_names=CLASSES, image_size=(16, 24)):
    """Both networks with one level and one block each, where only the kinds of their operations matter."""
    autoencoder = Autoencoder(latent_channels=2, channels=[8, 8])
    unet = UNet(in_channels=2, channels=[8, 8], num_res_blocks=1, embedding_channels=16, norm_groups=8)
    return Medfusion(autoencoder, unet, class_names, image_size).eval()


def info_of(network):
    """Return the description that a training would write for these networks."""
    schedule = NoiseSchedule(prediction_type="v_prediction")
    sampler = LatentDiffusionSampler(schedule, num_inference_steps=4, guidance_scale=2.0, eta=0.0, spacing="logsnr")
    training = {"images": "ab" * 32, "image_count": 557, "steps": 1000, "images_per_step": 32}
    form = {"resize_mode": "crop", "dicom_modalities": None}
    count = len(network.class_names)
    return describe_model(network, schedule, sampler.settings(), form, training, class_shares=[1 / count] * count)


def save(network, path):
    """Write weights with their description, and return their place."""
    save_weights(network, path)
    write_model_info(path, info_of(network))
    return path


def save_gan(path):
    """Write the weights of a GAN with their description, and return their place."""
    network = Gan(GanGenerator([16, 24], [8, 8, 8]), CLASSES, [16, 24]).eval()
    save_weights(network, path)
    form = {"resize_mode": "crop", "dicom_modalities": None}
    write_model_info(path, describe_model(network, None, GanSampler().settings(), form, {"images": "ab" * 32}))
    return path


def tool_named(name):
    """Import a module of ``tools``."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def copy_of_chest_bundle(folder):
    """Copy the chest bundle into a folder, without weights and the traces of runs, and return its place."""
    source = ROOT / "bundles" / "medfusion_cxr"
    unwanted = shutil.ignore_patterns("models", "runs", "eval", "data", "samples", "report")
    return Path(shutil.copytree(source, folder / source.name, ignore=unwanted))


def used_bundle(folder):
    """Return a chest bundle with weights of other classes, channels and size, and the traces of a training in it."""
    bundle = copy_of_chest_bundle(folder)
    network = tiny(["normal", "lobar pneumonia"], channels=3, image_size=(32, 48))
    path, info = save(network, bundle / "models" / "model.pt"), info_of(network)
    planted = {"planted_key": ["planted"]}
    write_model_info(path, {**info, **planted, "training": {**info["training"], **planted}})
    for name in ("runs/latents/0.npy", "data/datalist.json", "samples/0.png", "report/report.json", "eval/0.png"):
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_text("planted")
    for name in ("autoencoder.pt", "diffusion_training.pt", "notes.json", "copy_guard.npz"):
        (bundle / "models" / name).write_text("planted")
    return bundle


def small_wheel(output):
    """Write a wheel of one module, which takes no time, and return its place."""
    with zipfile.ZipFile(output / "package.whl", "w") as archive:
        archive.writestr(zipfile.ZipInfo("medfusion_monai/__init__.py"), "")  # without the time of day
    return output / "package.whl"


def contents(folder):
    """Return the bytes of all files of a folder, by their places in it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
