"""What came out of a training: how well held-out images are reconstructed, what samples look like."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.transforms import Compose
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import medfusion_monai
from medfusion_monai.configs import read_configs
from medfusion_monai.data import read_datalist, read_image
from medfusion_monai.handlers import grid_of_rows, reconstruction_rows
from medfusion_monai.handlers.image_grid import to_picture
from medfusion_monai.handlers.sample_writer import MANIFEST
from medfusion_monai.losses import to_unit
from medfusion_monai.metrics.similarity import ms_ssim, ms_ssim_window, mse, ssim
from medfusion_monai.networks.weights import load_weights

BATCH = 64  # images that are measured at once
COLUMNS = 10  # of the picture


def summarize(
    bundle: str | Path,
    dataset_dir: str | Path,
    model_file: str | Path,
    samples_dir: str | Path,
    output: str | Path,
    overlays: Sequence[str] = ("demo.yaml",),
    overrides: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure reconstructions of the test split, draw them and the samples, write ``summary.json``.

    Args:
        bundle: folder of the bundle.
        dataset_dir: folder of the datalist that was trained on.
        model_file: ``models/model.pt``.
        samples_dir: folder of samples that inference wrote, with their manifest.
        output: folder of ``summary.json`` and ``picture.png``.
        overlays: files of ``configs`` that were merged after ``train.yaml``.
        overrides: keys that were given on the command line of the training.
        extra: more entries of the summary.

    Returns:
        The summary.

    Raises:
        ValueError: for an override that is no key of the configs, and for what is missing.
    """
    parser = read_configs(bundle, ["train.yaml", *overlays], overrides)
    parser.update({"dataset_dir": str(dataset_dir)})
    class_names = parser.get_parsed_content("class_names")
    network = load_weights(parser.get_parsed_content("network_def"), model_file).eval()
    test = read_datalist(dataset_dir, "test", class_names)
    preprocessing = parser.get_parsed_content("train#preprocessing")
    samples = {name: load_samples(samples_dir, name, 2 * COLUMNS) for name in class_names}
    chosen = np.linspace(0, len(test) - 1, min(COLUMNS, len(test))).astype(int)
    shown = load_images([test[index] for index in chosen], preprocessing)
    _refuse_other_size(shown, samples)
    batches = (load_images(test[start : start + BATCH], preprocessing) for start in range(0, len(test), BATCH))
    summary = {
        **measure_reconstructions(network.autoencoder, batches),
        **(extra or {}),
        "seed": parser.get_parsed_content("seed"),
        "versions": versions(),
    }
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    draw_picture(network.autoencoder, shown, samples, output / "picture.png")
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


@torch.no_grad()
def measure_reconstructions(autoencoder: Any, batches: Iterable[Tensor]) -> dict[str, Any]:
    """Compare batches of images (B, C, H, W) in [0, 1] with their reconstructions: MS-SSIM, SSIM and MSE, averaged."""
    values: dict[str, list[Tensor]] = {"ms_ssim": [], "ssim": [], "mse": []}
    for batch in batches:
        reconstruction = to_unit(autoencoder.reconstruct(batch * 2.0 - 1.0))
        values["ms_ssim"].append(ms_ssim(reconstruction, batch))
        values["ssim"].append(ssim(reconstruction, batch))
        values["mse"].append(mse(reconstruction, batch))
    means = {name: float(torch.cat(parts).mean()) for name, parts in values.items()}
    window = ms_ssim_window(*batch.shape[-2:])
    return {
        **means,
        "ms_ssim_std": float(torch.cat(values["ms_ssim"]).std()),
        "ms_ssim_settings": f"5 scales, {window}x{window} Gaussian window; SSIM: 11x11 window",
        "held_out_images": sum(map(len, values["mse"])),
    }


def load_images(items: Sequence[Mapping[str, Any]], preprocessing: Compose) -> Tensor:
    """Read the images of datalist items as the training does: (N, C, H, W) in [0, 1]."""
    return torch.stack([torch.as_tensor(preprocessing(dict(item))["image"]) for item in items])


def load_samples(folder: str | Path, class_name: str, limit: int | None = None) -> Tensor:
    """Read the samples of a class that a folder's manifest lists: (N, C, H, W) in [0, 1].

    Args:
        folder: what inference wrote, as PNG.
        class_name: the class.
        limit: read only so many, the first by file name; None reads all.

    Raises:
        ValueError: for a folder without manifest, and for a class of which it lists nothing.
    """
    manifest = Path(folder) / MANIFEST
    if not manifest.is_file():
        raise ValueError(f"{folder} holds no {MANIFEST}: run inference first, or name its output_dir")
    with open(manifest, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    files = sorted({row["file"] for row in rows if row["class_name"] == class_name})[:limit]
    if not files:
        listed = sorted({str(row["class_name"]) for row in rows})
        raise ValueError(f"{manifest} lists no samples of class {class_name!r}, only of {listed}: run inference for it")
    return torch.from_numpy(np.stack([read_image(Path(folder) / file) for file in files]))


def versions() -> dict[str, str]:
    """Give the versions that results depend on."""
    return {
        "medfusion_monai": medfusion_monai.__version__,
        "monai": monai.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def draw_picture(autoencoder: Any, images: Tensor, samples: Mapping[str, Tensor], path: str | Path) -> None:
    """Draw originals, reconstructions, their difference, and two rows of samples a class, with captions."""
    rows = reconstruction_rows(autoencoder, images)
    captions = ["held-out image", "reconstruction", "difference x 4"]
    for name, batch in samples.items():
        rows += [batch[:COLUMNS], batch[COLUMNS : 2 * COLUMNS]][: 1 + (len(batch) > COLUMNS)]
        captions += [f"sample: {name}", ""][: 1 + (len(batch) > COLUMNS)]
    caption_rows(grid_of_rows(rows), captions, images.shape[-2:]).save(path)


def caption_rows(grid: Tensor, captions: Sequence[str], size: Sequence[int], padding: int = 2) -> Image.Image:
    """Put a caption to the left of each row of a grid (3, H, W) of images of the given size, twice enlarged."""
    scale = max(1, 128 // size[0])
    picture = to_picture(grid)
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    font = ImageFont.load_default(16)
    margin = max(210, *(16 + round(font.getlength(caption)) for caption in captions))
    canvas = Image.new("RGB", (picture.width + margin, picture.height), "white")
    canvas.paste(picture, (margin, 0))
    draw = ImageDraw.Draw(canvas)
    for row, caption in enumerate(captions):
        middle = scale * (padding + (row + 0.5) * (size[0] + padding))
        draw.text((8, middle), caption, fill="black", font=font, anchor="lm")
    return canvas


def _refuse_other_size(images: Tensor, samples: Mapping[str, Tensor]) -> None:
    for name, batch in samples.items():
        if batch.shape[1:] != images.shape[1:]:
            raise ValueError(
                f"samples of class {name!r} have shape {tuple(batch.shape[1:])}, the held-out images "
                f"{tuple(images.shape[1:])}: give the image_size and image_channels of the training (--set KEY=VALUE)"
            )
