"""Quality of reconstructions by first stages: tables 1, 2 and 4 and figure 2 of the paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.handlers import IgniteMetricHandler, write_metrics_reports
from PIL import Image
from torch import Tensor, nn

from medfusion_monai.evaluation.metrics.intervals import mean_figure
from medfusion_monai.evaluation.metrics.lpips import load_lpips, lpips_distance
from medfusion_monai.evaluation.metrics.similarity import (
    FULL_WINDOW,
    SMALLEST_FULL_SIDE,
    ImageMetric,
    ms_ssim_as_in_paper,
    ms_ssim_window,
    mse,
    psnr,
    ssim,
)
from medfusion_monai.losses.reconstruction import to_unit
from medfusion_monai.report.pictures import picture_of_rows, spread
from medfusion_monai.runtime.csv_cells import inert
from medfusion_monai.training.handlers.image_grid import reconstruction_rows

REPLICATES = 1000


def pair(out: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return reconstructions and images, (B, C, H, W) in [0, 1], of an evaluator's output."""
    return to_unit(out["pred"]), out["label"]


def reconstruction_metrics(
    lpips: str | None = None, device: torch.device | str = "cpu", image_size: Sequence[int] = (256, 256)
) -> dict[str, IgniteMetricHandler]:
    """Make the metrics besides MS-SSIM for an evaluator; each keeps the value of every image.

    Args:
        lpips: backbone of LPIPS, ``alex`` or ``vgg``; None leaves LPIPS out.
        device: where LPIPS is computed.
        image_size: height and width of the images. The MS-SSIM of the paper's script needs 176 pixels per side.

    Raises:
        ValueError: for an unknown backbone, or missing weights.
    """
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ssim": ssim, "mse": mse, "psnr": psnr}
    if min(image_size) >= SMALLEST_FULL_SIDE:
        functions["ms_ssim_paper"] = ms_ssim_as_in_paper
    if lpips is not None:
        functions["lpips"] = partial(lpips_distance, network=load_lpips(lpips).to(device))  # type: ignore[arg-type]
    return {
        name: IgniteMetricHandler(metric_fn=ImageMetric(function), output_transform=pair)
        for name, function in functions.items()
    }


def table_rows(
    name: str, items: Sequence[Mapping[str, Any]], values: Mapping[str, Tensor], seed: int = 0
) -> list[dict[str, Any]]:
    """Return the mean and standard deviation over the images of each split.

    Args:
        name: of the first stage.
        items: with ``split``, in the order of the values.
        values: of each measure, one per image, (N,) or (N, 1).
        seed: of the intervals of the means.

    Returns:
        Rows of a report's table of reconstructions.
    """
    rows = []
    for split in dict.fromkeys(item["split"] for item in items):
        of_split = torch.tensor([item["split"] == split for item in items])
        row: dict[str, Any] = {"name": name, "split": split, "count": int(of_split.sum())}
        for measure, each in values.items():
            chosen = each.flatten().cpu().double()[of_split]
            figure = mean_figure(chosen, REPLICATES, seed)
            spread_of = float(chosen.std()) if len(chosen) > 1 else None
            row[measure] = {"mean": figure.value, "std": spread_of, "low": figure.low, "high": figure.high}
            row[measure]["note"] = figure.note
        rows.append(row)
    return rows


def describe_ms_ssim(image_size: Sequence[int]) -> str:
    """Return how both columns of MS-SSIM are computed for images of this (height, width)."""
    window = ms_ssim_window(*image_size)
    text = (
        f"MS-SSIM has five scales, a Gaussian window of {window} x {window} pixels (sigma 1.5) and a range of 1. The "
        f"paper's script has a window of {FULL_WINDOW} x {FULL_WINDOW} and, instead of 1, the range of each pair of "
        "images, which gives lower values: compare published values only with its column"
    )
    return f"{text}." if window == FULL_WINDOW else f"{text}, which needs images of at least 176 x 176 pixels."


def write_values(folder: str | Path, items: Sequence[Mapping[str, Any]], values: Mapping[str, Tensor]) -> None:
    """Write each image's values and their summary to ``MEASURE_raw.csv``, ``_summary.csv`` and ``metrics.csv``.

    Args:
        folder: of the files.
        items: with ``split`` and ``number``, which identify an image in the tables instead of its file.
        values: of each measure, one per image, in the order of the items.
    """
    names = [inert(f"{item['split']} {item['number']}") for item in items]
    means: dict[str, Any] = {measure: float(each.mean()) for measure, each in values.items()}
    write_metrics_reports(folder, names, means, dict(values), ["mean", "std"])


def reconstruction_picture(
    autoencoders: Mapping[str, nn.Module], items: Sequence[Mapping[str, Any]], load: Callable[[str], Tensor]
) -> Image.Image:
    """Draw images, and for each first stage their reconstructions and the difference times four."""
    images = torch.stack([load(items[index]["image"]) for index in spread(len(items))])
    rows = [("original", images)]
    for name, autoencoder in autoencoders.items():
        _, reconstructions, difference = reconstruction_rows(autoencoder, images)
        rows += [(name, reconstructions), ("difference x 4", difference)]
    return picture_of_rows(rows)
