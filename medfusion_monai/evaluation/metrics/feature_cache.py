"""Features of image files, with two batches in memory at a time, cached by the contents of the files."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medfusion_monai.evaluation.metrics.feature_networks import FeatureExtractor
from medfusion_monai.evaluation.metrics.set_metrics import measure_images
from medfusion_monai.runtime.distributed import from_first
from medfusion_monai.runtime.files import file_sha256, renamed_when_whole

FORMAT = "medfusion features 1"
DIGEST_BYTES = 32


@dataclass(frozen=True)
class Extraction:
    """How features are computed and where they are kept.

    Attributes:
        extractor: a ``FeatureExtractor``, which maps images (B, C, H, W) in [0, 1] to features (B, D). The audit works
            without one, too: None.
        cache_dir: folder in which features are kept. They are reused only for the same contents in the same order, the
            same extractor and the same preprocessing; the names of the files do not matter. None keeps none.
        batch_size: images per batch.
        device: where the network runs.
    """

    extractor: Any
    cache_dir: str | Path | None = None
    batch_size: int = 32
    device: str | torch.device = "cpu"


def cached_features(
    extraction: Extraction,
    items: Sequence[str | os.PathLike[str]],
    load: Callable[[Any], Tensor],
    preprocessing: str = "",
) -> np.ndarray:
    """Return the features of image files, in order. Several processes compute a share each and return all.

    Args:
        extraction: how they are computed and where they are kept.
        items: the files.
        load: reads a file as an image (C, H, W) in [0, 1]; all must have the same shape.
        preprocessing: a description of ``load`` that distinguishes it, such as the size that it resizes images to.

    Returns:
        Array (N, D), float32.

    Raises:
        ValueError: if there are no files, one is unreadable or of another shape, or the folder cannot be written.
    """
    if not items:
        raise ValueError("there are no images to extract features from: give at least one file")
    if extraction.cache_dir is None:
        return _extract(extraction, items, load)
    extractor = extraction.extractor
    key = from_first(lambda: features_key(extractor, items, preprocessing))

    def compute() -> np.ndarray:
        features = _extract(extraction, items, load)
        if from_first(lambda: features_key(extractor, items, preprocessing)) != key:
            raise ValueError("images changed while they were measured: run again when nothing writes to them")
        return features

    return kept_features(Path(extraction.cache_dir) / f"{key}.features", (len(items), extractor.dimensions), compute)


def kept_features(path: Path, shape: tuple[int, int], compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the features in a file, or compute and store them.

    All processes compute; only the first reads and writes.

    Args:
        path: the file.
        shape: of the features.
        compute: called by all processes; the result of the first is stored.

    Raises:
        ValueError: if the folder cannot be written, or from ``compute``.
    """
    features = from_first(lambda: read_features(path, shape))
    if features is None:
        from_first(lambda: make_cache(path.parent))
        features = compute()
        from_first(lambda: write_features(path, features))
    return features


def features_key(extractor: FeatureExtractor, items: Sequence[str | os.PathLike[str]], preprocessing: str = "") -> str:
    """Return 64 hexadecimal digits for the contents of files in order, the extractor and the preprocessing.

    Raises:
        ValueError: if a file cannot be read.
    """
    facts = json.dumps([FORMAT, extractor.describe(), preprocessing], sort_keys=True)
    digest = hashlib.sha256(facts.encode())
    for item in items:
        try:
            digest.update(bytes.fromhex(file_sha256(Path(item))))
        except OSError as error:
            raise ValueError(
                f"image {os.fspath(item)} cannot be read: {error.strerror or error}. Restore it and run again"
            ) from error
    return digest.hexdigest()


def _extract(
    extraction: Extraction, items: Sequence[str | os.PathLike[str]], load: Callable[[Any], Tensor]
) -> np.ndarray:
    device = extraction.device
    extractor = extraction.extractor.to(device)
    shape: tuple[int, ...] | None = None

    def read(places: range) -> tuple[range, Tensor]:
        nonlocal shape
        images = []
        for place in places:
            image = load(items[place])
            if shape is None:
                shape = tuple(image.shape if place == 0 else load(items[0]).shape)
            if tuple(image.shape) != shape:
                raise ValueError(
                    f"image {os.fspath(items[place])} has shape {tuple(image.shape)}, but {os.fspath(items[0])} has "
                    f"{shape}: give all images one size and number of channels"
                )
            images.append(image)
        return places, torch.stack(images)

    def measure(batch: tuple[range, Tensor]) -> Tensor:
        places, images = batch
        values = extractor(images.to(device))
        finite = values.isfinite().all(dim=1)
        if not bool(finite.all()):
            place = places[int((~finite).nonzero()[0])]
            raise ValueError(
                f"the features of {os.fspath(items[place])} by {extractor.name} are not finite: check the image and, "
                "if it is intact, the extractor's weights"
            )
        return values

    shape_of_each = [extractor.dimensions]
    values = measure_images(measure, len(items), extraction.batch_size, shape_of_each, device, "features", read=read)
    return values.numpy()


def make_cache(folder: Path) -> None:
    """Create the folder of the features before anything is computed that could not be stored.

    Raises:
        ValueError: if the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def write_features(path: Path, features: np.ndarray) -> None:
    """Write an .npy file followed by the SHA-256 of its bytes.

    Raises:
        ValueError: if the file cannot be written.
    """
    body = io.BytesIO()
    np.save(body, features, allow_pickle=False)
    try:
        with renamed_when_whole(path) as partial:
            partial.write_bytes(body.getvalue() + hashlib.sha256(body.getvalue()).digest())
    except OSError as error:
        raise _unwritable(path.parent, error) from error


def read_features(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """Return what ``write_features`` wrote; None if the file is missing or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    body, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        return None
    features = np.load(io.BytesIO(body), allow_pickle=False)
    return features if features.shape == shape else None


def _unwritable(folder: Path, error: OSError) -> ValueError:
    return ValueError(f"cannot store features in {folder}: {error.strerror or error}. Choose another cache_dir")
