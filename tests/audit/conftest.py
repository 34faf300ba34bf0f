"""Small sets of images that are all alike, with copies where a test wants them."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from medfusion_monai.audit.fingerprints import Prints, fingerprint
from medfusion_monai.demo.phantoms.draw_chest import draw_chest_phantom
from medfusion_monai.evaluation.metrics.feature_networks import EfficientNetFeatures
from medfusion_monai.weights import efficientnet_lite


def phantoms(count, first_seed=0, size=64):
    """Images (N, 1, size, size) in [0, 1], of 8 bits."""
    images = [torch.from_numpy(draw_chest_phantom(first_seed + k, k % 2, size)[0]).float() for k in range(count)]
    return (torch.stack(images) * 255).round() / 255


def prints_of(images, patients=None, features=None):
    patients = torch.arange(len(images)) if patients is None else patients
    return Prints(fingerprint(images), features, patients)


def strangers(images, features=None):
    """Fingerprints of images without patients."""
    return prints_of(images, torch.full((len(images),), -1), features)


def write_images(folder, images):
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        pixels = (image * 255).round().byte().numpy()
        Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, 2)).save(folder / f"{index:04d}.png")


def write_datalist(folder, splits, class_names=("a", "b")):
    """Write splits of images and labels as a prepared data set."""
    document = {"class_names": list(class_names)}
    for split, (images, labels) in splits.items():
        write_images(folder / split, images)
        document[split] = [
            {"image": f"{split}/{k:04d}.png", "label": int(label), "patient": f"planted-{split}-{k}"}
            for k, label in enumerate(labels)
        ]
    (folder / "datalist.json").write_text(json.dumps(document))


@pytest.fixture(scope="session")
def draw():
    return phantoms


@pytest.fixture(scope="session")
def prints():
    return prints_of


@pytest.fixture(scope="session")
def unknown():
    return strangers


@pytest.fixture(scope="session")
def write_set():
    return write_images


@pytest.fixture(scope="session")
def write_data():
    return write_datalist


@pytest.fixture(scope="session")
def alike():
    """120 training images and 100 held-out ones, each of another patient."""
    images = phantoms(220)
    return images[:120], images[120:]


@pytest.fixture(scope="session")
def others():
    """60 images outside both sets."""
    return phantoms(60, first_seed=5000)


@pytest.fixture(autouse=True)
def quick_features(monkeypatch):
    """Take averaged pixels for the features of EfficientNet-Lite0: what an audit does with them is tested, not they."""
    pooled = (32, 40)
    assert math.prod(pooled) == efficientnet_lite.FEATURES
    extract = staticmethod(lambda image: F.adaptive_avg_pool2d(image.mean(dim=1), pooled).flatten(1))
    monkeypatch.setattr(EfficientNetFeatures, "extract", extract)
