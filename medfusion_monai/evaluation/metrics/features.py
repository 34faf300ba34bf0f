"""Feature extractors: networks that map images to the vectors by which sets of images are compared.

All weights come from local files. Figures are reported with ``describe()`` of their extractor, because distances in
the features of different networks are not comparable.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from medfusion_monai.evaluation.metrics.feature_networks import (
    ATTRIBUTES,
    DinoFeatures,
    EfficientNetFeatures,
    InceptionFeatures,
    PhantomFeatures,
    PixelFeatures,
    TorchScriptFeatures,
    TorchvisionFeatures,
)
from medfusion_monai.weights import efficientnet_lite, pretrained

AUTO = "auto"
SPECIFICATIONS = (
    f"{AUTO}, {efficientnet_lite.NAME}, inception, inception:FILE, dinov2, dinov2:FILE, rad-dino:FILE, "
    "torchvision:ARCHITECTURE:FILE, torchscript:FILE or phantoms:FILE (a file name for FILE), or null for none"
)
"""What ``load_extractor`` accepts."""


def load_extractor(specification: str | nn.Module | None, sha256: str | None = None) -> Any:
    """Make a feature extractor from its specification.

    Args:
        specification: ``auto``, ``efficientnet-lite0``, ``inception``, ``inception:FILE``, ``dinov2``, ``dinov2:FILE``,
            ``rad-dino:FILE``, ``torchvision:ARCHITECTURE:FILE``, ``torchscript:FILE`` or ``phantoms:FILE``. ``auto``
            takes Inception-v3 if its weights are on this machine, else EfficientNet-Lite0. None takes
            ``PixelFeatures``. A module with the attributes and ``describe`` of ``FeatureExtractor`` is returned.
        sha256: checksum that the weights file must have; without it, Inception-v3 and DINOv2 accept only the published
            weights and the others accept any.

    Raises:
        ValueError: if the specification is invalid, or the weights are missing or do not fit.
    """
    if isinstance(specification, nn.Module):
        missing = [name for name in ATTRIBUTES if not hasattr(specification, name)]
        if missing:
            raise ValueError(
                f"{type(specification).__name__} is not a feature extractor: it lacks {', '.join(missing)}"
            )
        return specification
    if specification is None:
        return PixelFeatures()
    if specification == AUTO:
        specification = "inception" if pretrained.place("inception-v3").is_file() else efficientnet_lite.NAME
    if specification == efficientnet_lite.NAME:
        return EfficientNetFeatures()
    kind, colon, rest = specification.partition(":")
    made = None if colon and not rest else _from_file(kind, rest, sha256)
    if made is None:
        raise ValueError(f"features {specification!r} are unknown: use {SPECIFICATIONS}")
    return made


def _from_file(kind: str, rest: str, sha256: str | None) -> Any:
    """Return the extractor of a kind with the rest of its specification, or None for another kind or no file."""
    if kind == "inception":
        return InceptionFeatures(rest or None, sha256)
    if kind == "dinov2":
        return DinoFeatures(rest or None, sha256=sha256)
    if kind == "rad-dino" and rest:
        return DinoFeatures(rest, is_rad=True, sha256=sha256)
    architecture, _, file = rest.partition(":")
    if kind == "torchvision" and architecture and file:
        return TorchvisionFeatures(architecture, file, sha256)
    if kind not in ("torchscript", "phantoms") or not rest:
        return None
    pretrained.check_sha256(rest, sha256, "Give the checksum of the intended file")
    return TorchScriptFeatures(rest) if kind == "torchscript" else PhantomFeatures(rest)
