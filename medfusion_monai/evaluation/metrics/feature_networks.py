"""The networks behind features: Inception-v3, EfficientNet-Lite0, DINOv2, classifiers, TorchScript, phantoms."""

from __future__ import annotations

import difflib
import io
import re
import warnings
from pathlib import Path
from typing import Any, ClassVar

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchvision import models

from medfusion_monai.evaluation.metrics.phantom_network import SIZE, load_phantom_network
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.weights import efficientnet_lite, pretrained
from medfusion_monai.weights.state_dict import read_state

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
ATTRIBUTES = ("name", "sha256", "dimensions", "resize", "is_inception", "describe")
ONE_SIZE = "Build a resize into the network, or resize the images to what it expects"


class FeatureExtractor(nn.Module):
    """A frozen network from images (B, C, H, W) in [0, 1] to features (B, D), float32.

    Gray images are repeated if the network takes three channels. Subclasses set the attributes and ``extract``.
    """

    name: str
    """Name of the network in reports."""
    sha256: str
    """Of its weights file."""
    dimensions: int
    """D."""
    resize: str
    """Description of how images are resized for the network."""
    is_inception: bool = False
    """Whether these are the features of published FID values."""
    channels: int = 3
    """Channels of the images that the network takes."""

    def extract(self, image: Tensor) -> Tensor:
        """Return the features of checked images with the right channels."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Return the features of images.

        Raises:
            ValueError: if the images have another shape, or values outside [0, 1].
        """
        return self.extract(self.checked(image)).float()

    def checked(self, image: Tensor) -> Tensor:
        """Return images with the channels of the network, or raise a ValueError."""
        if image.ndim != 4 or image.shape[1] not in (1, 3):
            raise ValueError(f"images have shape {tuple(image.shape)}: give (B, C, H, W) with 1 or 3 channels")
        if image.shape[1] > self.channels:
            raise ValueError(
                f"images have {image.shape[1]} channels, but {self.name} takes gray images: choose other features"
            )
        low, high = torch.stack(image.aminmax()).cpu().tolist()  # one read, which waits for a GPU
        if not (low >= -1e-4 and high <= 1 + 1e-4):  # NaN fails both
            raise ValueError(f"images have values from {low:.3g} to {high:.3g}: scale them to [0, 1]")
        return image.float().clamp(0.0, 1.0).expand(-1, self.channels, -1, -1)

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Stay in evaluation mode, whatever a trainer requests."""
        return super().train(False)

    def describe(self) -> dict[str, Any]:
        """Return what identifies the features: name, SHA-256, dimensions, resize, is_inception."""
        return {key: getattr(self, key) for key in ATTRIBUTES[:-1]}


class InceptionFeatures(FeatureExtractor):
    """The 2048 features of Inception-v3 as in the first implementation of FID (Heusel et al. 2017).

    Images are rounded to 8 bits, as in files; torch-fidelity resizes them as TensorFlow 1 did.

    Args:
        weights_file: torch-fidelity's weights; None takes the file of ``medfusion weights``.
        sha256: checksum of a file with other weights that the caller trusts; ``is_inception`` is then False and the
            name contains custom. None accepts only the published weights.

    Raises:
        WeightsError: if the weights are missing, have another checksum or do not fit.
    """

    def __init__(self, weights_file: str | Path | None = None, sha256: str | None = None) -> None:
        super().__init__()
        published = pretrained.KNOWN["inception-v3"].sha256
        path = pretrained.find("inception-v3") if weights_file is None else Path(weights_file)
        self.sha256 = pretrained.check_sha256(path, sha256 or published, pretrained.how_to_get("inception-v3"))
        self.is_inception = self.sha256 == published
        self.name = "inception-v3" if self.is_inception else "inception-v3, custom weights"
        self.dimensions = 2048
        self.resize = "bilinear to 299x299, as in TensorFlow 1"
        # torch-fidelity would execute code in a file: it gets only the tensors.
        tensors = io.BytesIO()
        torch.save(read_state(path), tensors)
        tensors.seek(0)
        try:
            self.network = FeatureExtractorInceptionV3("inception-v3", ["2048"], feature_extractor_weights_path=tensors)
        except RuntimeError as error:
            raise _misfit(path, "torch-fidelity's Inception-v3", error) from error

    def extract(self, image: Tensor) -> Tensor:
        """Return the features."""
        return self.network((image * 255).round().to(torch.uint8))[0]


class EfficientNetFeatures(FeatureExtractor):
    """The 1,280 features before the classes of EfficientNet-Lite0, trained on ImageNet; its weights are installed.

    Raises:
        WeightsError: if the installed weights are missing, or another file.
    """

    def __init__(self) -> None:
        super().__init__()
        self.name, self.sha256 = efficientnet_lite.NAME, efficientnet_lite.SHA256
        self.dimensions = efficientnet_lite.FEATURES
        self.resize = "bilinear, antialiased, to 224x224"
        self.network = efficientnet_lite.load_efficientnet_lite().to(memory_format=torch.channels_last)

    def extract(self, image: Tensor) -> Tensor:
        """Return the features."""
        image = F.interpolate(image, size=(224, 224), mode="bilinear", antialias=True) * 2 - 1
        image = image.contiguous(memory_format=torch.channels_last)  # twice as fast on a CPU
        return self.network.forward_head(self.network.forward_features(image), pre_logits=True)


class DinoFeatures(FeatureExtractor):
    """The 768 features of the class token of DINOv2's ViT-B/14, or of RAD-DINO, which continued its training on X-rays.

    DINOv2 (Oquab et al. 2023) reads 224x224 pixels, as in studies of metrics of generated images (Stein et al. 2023);
    RAD-DINO (Pérez-García et al. 2024) 518x518, as its publishers do, which takes six times as long.

    Args:
        weights_file: DINOv2's ``dinov2_vitb14_pretrain.pth`` or RAD-DINO's ``backbone_compatible.safetensors``; None
            takes DINOv2's of ``medfusion weights``.
        is_rad: whether the network is RAD-DINO.
        sha256: checksum that the file must have; None accepts only DINOv2's published weights, and any of RAD-DINO,
            whose checksum is not published.

    Raises:
        WeightsError: if the weights are missing, have another checksum or do not fit.
    """

    network_arguments: ClassVar[dict[str, Any]] = {"img_size": 518}
    mean: Tensor
    std: Tensor

    def __init__(self, weights_file: str | Path | None = None, is_rad: bool = False, sha256: str | None = None) -> None:
        super().__init__()
        path = pretrained.find("dinov2") if weights_file is None else Path(weights_file)
        wanted = sha256 or (None if is_rad else pretrained.KNOWN["dinov2"].sha256)
        self.sha256 = pretrained.check_sha256(path, wanted, "" if is_rad else pretrained.how_to_get("dinov2"))
        if is_rad and self.sha256 == pretrained.KNOWN["dinov2"].sha256:
            raise WeightsError(f"weights {path} are those of DINOv2, not of RAD-DINO: use dinov2, or another file")
        self.side, mean, std = (518, (0.5307,) * 3, (0.2583,) * 3) if is_rad else (224, IMAGENET_MEAN, IMAGENET_STD)
        self.name = "rad-dino" if is_rad else "dinov2-vitb14"
        self.resize = f"bicubic, antialiased, to {self.side}x{self.side}"
        network: Any = timm.create_model(
            "vit_base_patch14_dinov2", num_classes=0, dynamic_img_size=True, **self.network_arguments
        )
        state = {name: value for name, value in read_state(path).items() if name != "mask_token"}  # of its training
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise _misfit(path, "DINOv2's ViT-B/14", error) from error
        self.network, self.dimensions = network.eval().requires_grad_(False), network.num_features
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def extract(self, image: Tensor) -> Tensor:
        """Return the features."""
        image = F.interpolate(image, size=(self.side, self.side), mode="bicubic", antialias=True).clamp(0.0, 1.0)
        return self.network((image - self.mean) / self.std)


class TorchvisionFeatures(FeatureExtractor):
    """The input of the last linear layer of a torchvision classifier, for images resized to 224x224.

    Args:
        architecture: torchvision's name, e.g. ``resnet50`` or ``densenet121``.
        weights_file: its state dict, for any number of classes.
        sha256: checksum that the file must have; None accepts any.

    Raises:
        ValueError: if the architecture is unknown or lacks a linear layer, or the weights are missing or do not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, architecture: str, weights_file: str | Path, sha256: str | None = None) -> None:
        super().__init__()
        known = models.list_models(module=models)
        if architecture not in known:
            near = difflib.get_close_matches(architecture, known) or ["resnet50", "densenet121"]
            raise ValueError(f"torchvision has no classifier {architecture!r}. Similar names: {', '.join(near)}")
        self.sha256 = pretrained.check_sha256(weights_file, sha256, "Give the checksum of the intended file")
        self.name = f"torchvision {architecture}"
        self.resize = "bilinear, antialiased, to 224x224; ImageNet mean and standard deviation"
        with warnings.catch_warnings():  # some architectures warn about slow initialization; these weights are replaced
            warnings.simplefilter("ignore")
            network = models.get_model(architecture, weights=None)
        head = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
        if not head:
            raise ValueError(f"{architecture} has no linear layer: choose another architecture")
        self.dimensions = int(network.get_submodule(head[-1]).in_features)
        network.set_submodule(head[-1], nn.Identity())
        state = {
            _modern_name(name): value
            for name, value in read_state(weights_file).items()
            if not name.startswith(f"{head[-1]}.")
        }
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise _misfit(weights_file, f"torchvision's {architecture}", error) from error
        self.network = network.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None])

    def extract(self, image: Tensor) -> Tensor:
        """Return the features."""
        image = F.interpolate(image, size=(224, 224), mode="bilinear", antialias=True)
        return self.network((image - self.mean) / self.std)


class TorchScriptFeatures(FeatureExtractor):
    """The output of a TorchScript network. Such a file is a program: use only files that you trust.

    Args:
        file: the network, from float images (B, 3, H, W), or (B, 1, H, W), in [0, 1] to floats (B, D).
        size: height and width that images are resized to, bilinear and antialiased; None leaves them as they are.

    Raises:
        WeightsError: if the file is missing, not TorchScript, or does not map images to floats (B, D).
    """

    def __init__(self, file: str | Path, size: int | None = None) -> None:
        super().__init__()
        self.sha256 = pretrained.check_sha256(file)
        self.name = f"TorchScript {Path(file).name}"
        self.size = size
        self.resize = "none" if size is None else f"bilinear, antialiased, to {size}x{size}"
        try:
            with warnings.catch_warnings():  # torch advises authors to use another format
                warnings.simplefilter("ignore")
                self.network = torch.jit.load(str(file), map_location="cpu").eval()
        except Exception as error:
            raise WeightsError(f"{file} cannot be read as TorchScript: write it with torch.jit.save") from error
        self.channels, self.dimensions = self._find_shapes(file)

    def extract(self, image: Tensor) -> Tensor:
        """Return the features."""
        if self.size is not None:
            image = F.interpolate(image, size=(self.size, self.size), mode="bilinear", antialias=True)
        try:
            features = self.network(image)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise WeightsError(
                f"{self.name} fails on images of {tuple(image.shape[1:])}: {reason}. {ONE_SIZE}"
            ) from error
        if features.shape != (len(image), self.dimensions):
            raise WeightsError(
                f"{self.name} returned {tuple(features.shape)} for images of {tuple(image.shape[1:])}, but "
                f"{self.dimensions} features before. {ONE_SIZE}"
            )
        return features

    @torch.no_grad()
    def _find_shapes(self, file: str | Path) -> tuple[int, int]:
        """Return the channels that the network takes and the number of features, by trial."""
        side, problem = self.size or 224, ""
        for channels in (3, 1):
            try:
                output = self.network(torch.zeros(2, channels, side, side))
            except Exception as error:
                problem = problem or f"it fails: {str(error).strip().splitlines()[-1]}"
                continue
            if isinstance(output, Tensor) and output.is_floating_point() and output.ndim == 2 and len(output) == 2:
                return channels, output.shape[1]
            found = f"{output.dtype} of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output)
            problem = f"it returns {found}"
            break
        raise WeightsError(f"{file} must map images (2, 3, {side}, {side}) to floats (2, D), but {problem}")


class PhantomFeatures(FeatureExtractor):
    """The 64 features of a network trained on phantoms of one modality, see ``demo.phantoms.network``.

    Args:
        weights_file: from ``train_phantom_features``.

    Raises:
        WeightsError: if the file is missing or contains something else.
    """

    def __init__(self, weights_file: str | Path) -> None:
        super().__init__()
        self.sha256 = pretrained.check_sha256(weights_file)
        self.network = load_phantom_network(weights_file)
        self.channels = self.network.channels
        self.name = f"phantoms-{self.network.modality_name}"
        self.dimensions = self.network.head.in_features
        self.resize = f"bilinear, antialiased, to {SIZE}x{SIZE}"

    def extract(self, image: Tensor) -> Tensor:
        """Return the features."""
        return self.network(image)


class PixelFeatures(FeatureExtractor):
    """Pixels averaged to 32 x 32, in place of features where there are none.

    They find nearest images. Distances between sets of them mean nothing, so FID and the like are left out.
    """

    name = "pixels averaged to 32 x 32"
    sha256 = ""
    resize = "averaged to 32x32"
    dimensions = 3 * 32 * 32

    def extract(self, image: Tensor) -> Tensor:
        """Return the averaged pixels."""
        return F.adaptive_avg_pool2d(image, 32).flatten(1)


def _modern_name(name: str) -> str:
    """Return a weight's name in current DenseNet: older files, also torchvision's, have norm.1 instead of norm1."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)


def _misfit(path: str | Path, network: str, error: RuntimeError) -> WeightsError:
    reason = " ".join(str(error).split())
    return WeightsError(f"weights {path} do not fit {network}: {reason[:300]}. Name the file of this network")
