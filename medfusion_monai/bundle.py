"""What the bundles' configs call before and between the steps of a run."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from monai.bundle import ConfigWorkflow
from torch import nn

import medfusion_monai.diffusion
import medfusion_monai.handlers
import medfusion_monai.losses  # noqa: F401  configs name these by their full names
from medfusion_monai.data import check_images
from medfusion_monai.engines import measure_latent_statistics
from medfusion_monai.networks.weights import WeightsError, file_sha256, load_weights, save_weights

logger = logging.getLogger(__name__)

MODEL_MADE_BY = "run training"


def find_bundle_root() -> str:
    """Give the folder of the bundle whose config is being run, so that configs work from any working directory.

    The bundle runner tells a config nothing about where it lies, so this looks for the running workflow among
    its callers. Without one (a parser used by hand) it is the working directory, as in the zoo's bundles.
    """
    frame = inspect.currentframe()
    while frame is not None:
        workflow = frame.f_locals.get("self")
        if isinstance(workflow, ConfigWorkflow):
            sys.excepthook = _show_cause_last
            folder = Path(workflow.config_root_path).absolute()
            return str(folder.parent if folder.name == "configs" else folder)
        frame = frame.f_back
    return "."


def check_training(
    datalists: Sequence[Sequence[dict[str, Any]]],
    image_size: Sequence[int],
    image_channels: int,
    folders: Sequence[str],
    class_names: Sequence[str],
    check_files: bool = True,
) -> None:
    """Check all that can be wrong before the first step: sizes, folders, and every image file.

    Args:
        datalists: training and validation items.
        image_size: (height, width) that the images are brought to.
        image_channels: 1 or 3.
        folders: where the run will write.
        class_names: one a label.
        check_files: decode every image once.

    Raises:
        ValueError: naming the key, the value and what to do.
    """
    check_image_size(image_size)
    if image_channels not in (1, 3):
        raise ValueError(f"image_channels must be 1 (gray) or 3 (RGB), received {image_channels}")
    if len(set(class_names)) != len(class_names) or not class_names:
        raise ValueError(f"class_names must be different names, one a label, received {list(class_names)}")
    for folder in folders:
        check_writable(folder)
    if check_files:
        check_images([item["image"] for items in datalists for item in items], channels=image_channels)


def check_image_size(image_size: Sequence[int], factor: int = 8) -> None:
    """Raise a ValueError unless ``image_size`` is (height, width), both positive multiples of ``factor``."""
    if len(image_size) != 2 or any(not isinstance(side, int) or side <= 0 or side % factor for side in image_size):
        raise ValueError(
            f"image_size must be [height, width], both multiples of {factor} (the autoencoder makes images {factor} "
            f"times smaller), received {list(image_size)}"
        )


def check_writable(folder: str | Path) -> Path:
    """Make a folder and return it; raise a ValueError if it cannot be made or written."""
    folder = Path(folder)
    probe = folder / f".writable.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"folder {folder} cannot be written ({error.strerror}): choose another or free it") from error
    return folder


def check_inference(
    plan: Sequence[dict[str, Any]], inferer: Any, image_size: Sequence[int], output_dir: str, model_file: str
) -> None:
    """Check what can be wrong before the first image; the plan and the inferer were checked when they were made.

    Raises:
        ValueError: naming the key, the value and what to do.
    """
    check_image_size(image_size)
    weights_checksum(model_file)
    check_writable(output_dir)
    logger.info("%d images, %d steps each, into %s", len(plan), inferer.num_inference_steps, output_dir)


def load_model(network: nn.Module, path: str | Path) -> nn.Module:
    """Load ``models/model.pt``; raise a WeightsError if it is missing or does not fit."""
    return load_weights(network, path, MODEL_MADE_BY).eval()


def weights_checksum(path: str | Path) -> str:
    """Give the SHA-256 of a weights file; raise a WeightsError if it is missing."""
    if not Path(path).is_file():
        raise WeightsError(f"weights {path} do not exist: {MODEL_MADE_BY} first, or name another --model_file")
    return file_sha256(path)


def finish_autoencoder(
    autoencoder: Any, best: str | Path, batches: Any, path: str | Path, device: torch.device | str = "cpu"
) -> None:
    """End phase one: take the best weights, measure the latents of the training set, write ``path``.

    Args:
        autoencoder: the network.
        best: its best weights, of ``BestWeights``.
        batches: the training images, once each.
        path: ``models/autoencoder.pt``.
        device: where to compute.
    """
    load_weights(autoencoder, best, "phase one: run train_autoencoder")
    autoencoder.set_latent_statistics(*measure_latent_statistics(autoencoder, batches, device))
    save_weights(autoencoder, path)
    logger.info("phase one is finished: %s", path)


def load_autoencoder(autoencoder: nn.Module, path: str | Path) -> nn.Module:
    """Load the weights of phase one for phase two; raise a WeightsError if there are none or they do not fit."""
    return load_weights(autoencoder, path, "phase two needs phase one: run train_autoencoder (or training)").eval()


def _show_cause_last(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Repeat the first cause below the traceback: the runner wraps it into 'Failed to evaluate' of a config line."""
    sys.__excepthook__(kind, error, traceback)
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, ValueError | RuntimeError):
        print(f"\nmedfusion: error: {cause}", file=sys.stderr)
