"""DINOv2 and RAD-DINO as extractors: layout of the published file, sizes, and what is refused."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from medfusion_monai.evaluation.metrics.feature_networks import DinoFeatures
from medfusion_monai.evaluation.metrics.features import load_extractor
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.weights import pretrained

PUBLISHED = ["cls_token", "pos_embed", "mask_token", "patch_embed.proj.weight", "patch_embed.proj.bias"]
PUBLISHED += ["norm.weight", "norm.bias"]
PUBLISHED += [
    f"blocks.{block}.{name}"
    for block in range(12)
    for name in (
        *(f"{layer}.{kind}" for layer in ("norm1", "norm2") for kind in ("weight", "bias")),
        *(
            f"{layer}.{kind}"
            for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
            for kind in ("weight", "bias")
        ),
        "ls1.gamma",
        "ls2.gamma",
    )
]
"""Names of the tensors in dinov2_vitb14_pretrain.pth."""
TINY = {"img_size": 518, "depth": 1, "embed_dim": 16, "num_heads": 2}


@pytest.fixture
def state(monkeypatch):
    """A state dict in the published layout, of a tiny network that takes the place of the large one."""
    monkeypatch.setattr(DinoFeatures, "network_arguments", TINY)
    torch.manual_seed(0)
    network = timm.create_model("vit_base_patch14_dinov2", num_classes=0, **TINY)
    for value in network.parameters():
        value.data = 0.2 * torch.randn_like(value)
    return network.state_dict() | {"mask_token": torch.zeros(1, 16)}


@pytest.fixture
def file(state, tmp_path, monkeypatch):
    """The tiny network as the file that ``medfusion weights`` knows."""
    path = tmp_path / "dinov2_vitb14_pretrain.pth"
    torch.save(state, path)
    known = pretrained.KNOWN["dinov2"]._replace(sha256=file_sha256(path))
    monkeypatch.setitem(pretrained.KNOWN, "dinov2", known)
    monkeypatch.setenv(pretrained.FOLDER_VARIABLE, str(tmp_path))
    return path


def test_network_has_the_tensors_of_the_published_file():
    with torch.device("meta"):
        network = timm.create_model("vit_base_patch14_dinov2", num_classes=0, **DinoFeatures.network_arguments)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert {*shapes, "mask_token"} == set(PUBLISHED)
    assert shapes["pos_embed"] == (1, 1370, 768)
    assert shapes["patch_embed.proj.weight"] == (768, 3, 14, 14)
    assert round(sum(value.numel() for value in network.parameters()) / 1e6, 1) == 86.6


@pytest.mark.parametrize("size", [(32, 48), (128, 128)])
def test_features_are_those_of_the_class_token(file, state, size):
    extractor = load_extractor("dinov2")
    assert extractor.describe() == {
        "name": "dinov2-vitb14",
        "sha256": file_sha256(file),
        "dimensions": 16,
        "resize": "bicubic, antialiased, to 224x224",
        "is_inception": False,
    }
    images = torch.rand(3, 1, *size, generator=torch.Generator().manual_seed(1))
    features = extractor(images)
    assert features.shape == (3, 16)
    assert features.std(dim=0).min() > 0
    assert torch.equal(features, extractor(images.repeat(1, 3, 1, 1))), "gray images are repeated"
    torch.testing.assert_close(features[1:2], extractor(images[1:2]), atol=1e-5, rtol=1e-4)
    resized = torch.nn.functional.interpolate(images, size=(224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    inputs = (resized.repeat(1, 3, 1, 1) - mean[:, None, None]) / std[:, None, None]
    tokens = extractor.network.forward_features(inputs)
    torch.testing.assert_close(features, tokens[:, 0], atol=1e-5, rtol=1e-4)


def test_rad_dino_reads_larger_images_and_states_its_checksum(state, tmp_path):
    path = tmp_path / "backbone_compatible.safetensors"
    save_file(state, path)
    extractor = load_extractor(f"rad-dino:{path}")
    assert (extractor.name, extractor.sha256) == ("rad-dino", file_sha256(path))
    assert "518x518" in extractor.resize
    assert extractor(torch.rand(2, 1, 32, 32)).shape == (2, 16)
    with pytest.raises(WeightsError, match="expected"):
        load_extractor(f"rad-dino:{path}", sha256="0" * 64)


def test_other_files_are_refused(file, state, tmp_path):
    other = tmp_path / "other.pth"
    torch.save({**state, "cls_token": state["cls_token"] + 1}, other)
    with pytest.raises(WeightsError, match="medfusion weights fetch dinov2"):
        load_extractor(f"dinov2:{other}")
    assert load_extractor(f"dinov2:{other}", sha256=file_sha256(other)).dimensions == 16
    torch.save({name: value for name, value in state.items() if name != "norm.weight"}, other)
    with pytest.raises(WeightsError, match="do not fit DINOv2's ViT-B/14"):
        load_extractor(f"rad-dino:{other}")
    file.unlink()
    with pytest.raises(WeightsError, match="are not on this machine"):
        load_extractor("dinov2")
    for unknown in ("rad-dino", "dinov2:", "dino"):
        with pytest.raises(ValueError, match="are unknown: use"):
            load_extractor(unknown)
