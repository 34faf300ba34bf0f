"""Prove edits on phantoms of any family, where the truth is known: counterfactuals, planted lesions, seams.

The phantoms are drawn from seeds that no demo and no starter weights use. Counterfactuals: the share of images whose
measured property is on the other class's side, and the SSIM of what does not belong to it. Lesions: the area under
the curve, by pixel, of anomaly maps of healthy phantoms with a planted disc. Seams: the step across the edge of an
inpainted disc against the step of the original at the same place.

    python benchmarks/edit_proofs.py --model runs/demo/cxr/models --count 128 --json FILE --picture FILE.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import binary_dilation, distance_transform_edt
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from medfusion_monai import Model, load
from medfusion_monai.demo.phantoms.draw_chest import RATIO_RANGES
from medfusion_monai.demo.phantoms.families import FAMILIES, family_of_classes
from medfusion_monai.demo.phantoms.measure_histology import lymphocyte_places
from medfusion_monai.demo.phantoms.measurements import MEASUREMENTS
from medfusion_monai.editing import anomaly_map, counterfactual, inpaint
from medfusion_monai.editing.counterfactuals import GUIDANCE_SCALE, STRENGTH

FIRST_SEED = 900_000_000
SSIM_REACH = 6
"""Pixels by which the window of SSIM reaches into what has changed."""
RADII = (3, 6, 12)
"""Of lesions in an image of 128 pixels; smaller in smaller images."""
HEALTHY = {"cxr": 0, "fundus": 0, "histo": 1}
LESIONS = {"cxr": (0.35,), "fundus": (0.35, 0.30, 0.05), "histo": (-0.35, -0.40, -0.25)}
"""By how much a lesion changes each channel in its middle: a dense nodule, an exudate, a dark blot of stain."""


class Phantoms(NamedTuple):
    """Drawn images (B, C, H, W), labels (B,), and the truth of each."""

    modality: str
    images: Tensor
    labels: Tensor
    truths: list[dict[str, float]]


def main() -> None:
    """Print the figures, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="weights of phantoms, or a folder with them")
    parser.add_argument("--count", type=int, default=128, help="phantoms per proof")
    parser.add_argument("--proofs", nargs="+", choices=PROOFS, default=list(PROOFS))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--strength", type=float, default=STRENGTH, help="of counterfactuals")
    parser.add_argument("--guidance-scale", type=float, default=GUIDANCE_SCALE, help="likewise")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="PNG of rows of three phantoms, drawn at random, by proof")
    arguments = parser.parse_args()
    model = load(arguments.model, arguments.device)
    strength = {"strength": arguments.strength, "guidance_scale": arguments.guidance_scale}
    figures: dict[str, Any] = {"count": arguments.count, "torch": torch.__version__, **strength}
    rows: list[Tensor] = []
    for proof in arguments.proofs:
        found, shown = PROOFS[proof](model, arguments.count, arguments.batch_size, **strength)
        figures[proof] = found
        rows += shown
        print(f"{proof}: {json.dumps(found)}", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    if arguments.picture:
        save_picture(rows, arguments.picture)


def draw(model: Model, count: int, first: int = 0, label: int | None = None) -> Phantoms:
    """Draw phantoms of the model's family and size, of one class or alternately of both."""
    modality = family_of_classes(model.class_names)
    labels = [index % 2 if label is None else label for index in range(count)]
    drawn = [
        FAMILIES[modality].draw(FIRST_SEED + first + index, own, tuple(model.image_size))
        for index, own in enumerate(labels)
    ]
    images = torch.from_numpy(np.stack([image for image, _ in drawn]))
    return Phantoms(modality, images, torch.tensor(labels), [truth for _, truth in drawn])


def prove_counterfactuals(
    model: Model, count: int, batch_size: int, **strength: float
) -> tuple[dict[str, Any], list[Tensor]]:
    """Return the share of images that moved to the other class, and the SSIM of the rest."""
    phantoms = draw(model, count)
    others = 1 - phantoms.labels
    shown = counterfactual(model, phantoms.images, others, phantoms.labels, batch_size=batch_size, **strength)
    measurement = MEASUREMENTS[phantoms.modality]
    values = measurement.measure(shown)
    above = others.numpy() == int(measurement.rising)
    moved = np.where(above, values > measurement.threshold, values < measurement.threshold)
    similarities = [
        _ssim_outside(image, other, _belongs(phantoms.modality, image.numpy(), other.numpy(), truth))
        for image, other, truth in zip(phantoms.images, shown, phantoms.truths, strict=True)
    ]
    figures = {"moved": round(float(moved.mean()), 4), "SSIM of the rest": round(float(np.mean(similarities)), 4)}
    return figures, [*rows_of(phantoms.images, count), *rows_of(shown, count)]


def _belongs(modality: str, image: np.ndarray, other: np.ndarray, truth: dict[str, float]) -> np.ndarray:
    """Return the pixels (H, W) that belong to the measured property, in either image."""
    rows, columns = np.mgrid[: image.shape[1], : image.shape[2]]
    if modality == "cxr":
        middle = (truth["heart_left"] + truth["heart_right"]) / 2
        return np.abs(columns - middle) <= RATIO_RANGES[1][1] * truth["thorax_width"] / 2
    if modality == "fundus":
        return np.hypot(rows - truth["disc_y"], columns - truth["disc_x"]) <= truth["disc_height"] / 2
    places = np.concatenate([lymphocyte_places(image), lymphocyte_places(other)])
    found = np.zeros(image.shape[1:], bool)
    for row, column in places:
        found |= np.hypot(rows - row, columns - column) <= truth["lymphocyte_radius"]
    return found


def _ssim_outside(image: Tensor, other: Tensor, belongs: np.ndarray) -> float:
    _, full = structural_similarity_index_measure(other[None], image[None], data_range=1.0, return_full_image=True)
    outside = distance_transform_edt(~belongs) > SSIM_REACH
    return float(full[0].mean(0)[torch.from_numpy(outside)].mean())


def prove_lesions(model: Model, count: int, batch_size: int, **_: float) -> tuple[dict[str, Any], list[Tensor]]:
    """Return the AUC by pixel of the anomaly maps of healthy phantoms with a planted lesion, by its radius."""
    label = HEALTHY[family_of_classes(model.class_names)]
    phantoms = draw(model, count, first=10_000, label=label)
    figures, rows = {}, []
    for radius in RADII:
        images, masks = plant(phantoms, radius * min(model.image_size) / 128)
        maps = anomaly_map(model, images, label, batch_size=batch_size)
        areas = [roc_auc_score(mask.ravel(), one.ravel()) for mask, one in zip(masks, maps.numpy(), strict=True)]
        figures[f"AUC, radius {radius} of 128"] = round(float(np.mean(areas)), 4)
        rows += [*rows_of(images, count), *rows_of((maps / maps.flatten(1).amax(1)[:, None, None, None]), count)]
    return figures, rows


def plant(phantoms: Phantoms, radius: float) -> tuple[Tensor, np.ndarray]:
    """Return images with a soft disc each, somewhere inside the body, and the discs' masks (B, H, W)."""
    images, masks = phantoms.images.clone(), []
    change = torch.tensor(LESIONS[phantoms.modality])[:, None, None]
    for index, image in enumerate(phantoms.images):
        rng = np.random.default_rng([FIRST_SEED, index])
        body = image.mean(0).numpy() > 0.15
        deep = distance_transform_edt(np.pad(body, 1))[1:-1, 1:-1] > radius + 2
        row, column = rng.choice(np.argwhere(deep if deep.any() else body))
        rows, columns = np.mgrid[: body.shape[0], : body.shape[1]]
        away = np.hypot(rows - row, columns - column)
        profile = torch.from_numpy(np.clip((radius + 0.5 - away) / max(1.0, radius / 3), 0, 1).astype(np.float32))
        images[index] = (image + change * profile).clamp(0, 1)
        masks.append(away <= radius)
    return images, np.stack(masks)


def prove_seams(model: Model, count: int, batch_size: int, **_: float) -> tuple[dict[str, Any], list[Tensor]]:
    """Return how steps across the edge of inpainted discs compare with those of the originals."""
    phantoms = draw(model, count, first=20_000)
    shown, figures = seam_figures(model, phantoms.images, phantoms.labels, batch_size)
    return figures, [*rows_of(phantoms.images, count), *rows_of(shown, count)]


def seam_figures(model: Model, images: Tensor, labels: Tensor, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
    """Return images with an inpainted disc each, and their steps by those of the originals at the same places."""
    masks = discs(len(images), model.image_size)
    shown = inpaint(model, images, masks, labels, batch_size=batch_size)
    before, after = (edge_steps(each, masks) for each in (images, shown))
    inside = [edge_steps(each, _eroded(masks, 4)).mean() for each in (images, shown)]
    return shown, {
        "step of the originals": round(float(before.mean()), 5),
        "ratio of the steps at the edge": round(float(after.mean() / before.mean()), 3),
        "ratio four pixels inside": round(float(inside[1] / inside[0]), 3),
        "images below the originals' 95th percentile": round(float((after <= before.quantile(0.95)).sum())),
    }


def discs(count: int, size: list[int]) -> Tensor:
    """Return masks (B, 1, H, W), each a disc of a fifth of the shorter side in radius, at a random place."""
    rng = np.random.default_rng(FIRST_SEED)
    radius = min(size) / 5
    rows, columns = np.mgrid[: size[0], : size[1]]
    places = rng.uniform(radius, np.array(size) - radius, (count, 2))
    return torch.from_numpy(np.stack([np.hypot(rows - row, columns - column) <= radius for row, column in places]))[
        :, None
    ]


def edge_steps(images: Tensor, masks: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbours on both sides of the masks' edges, (B,)."""
    total, number = torch.zeros(len(images)), torch.zeros(len(images))
    for dim in (2, 3):
        length = images.shape[dim] - 1
        first, second = (images.narrow(dim, start, length) for start in (0, 1))
        crossed = masks.narrow(dim, 0, length) != masks.narrow(dim, 1, length)
        total += ((second - first).abs().mean(1, keepdim=True) * crossed).flatten(1).sum(1)
        number += crossed.flatten(1).sum(1)
    return total / number


def _eroded(masks: Tensor, pixels: int) -> Tensor:
    outside = binary_dilation(~masks.numpy(), np.ones((1, 1, 3, 3)), iterations=pixels)
    return torch.from_numpy(~outside)


def rows_of(images: Tensor, count: int) -> list[Tensor]:
    """Return one row of up to six images, chosen by a fixed seed."""
    chosen = np.sort(np.random.default_rng(0).choice(count, min(6, count), replace=False))
    shown = images[torch.from_numpy(chosen)]
    return [torch.cat(list(shown.expand(-1, 3, -1, -1)), 2)]


def save_picture(rows: list[Tensor], path: Path) -> None:
    """Write rows (3, H, W) below each other."""
    pixels = torch.cat(rows, 1).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path, optimize=True)


PROOFS = {"counterfactuals": prove_counterfactuals, "lesions": prove_lesions, "seams": prove_seams}


if __name__ == "__main__":
    main()
