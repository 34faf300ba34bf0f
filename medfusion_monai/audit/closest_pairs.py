"""The generated images that are closest to a training image, as rows and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from medfusion_monai.audit.measure import Copies
from medfusion_monai.audit.sets import AuditedSet
from medfusion_monai.report.pictures import picture_of_rows


def closest_pairs(copies: Copies, number: int = 8) -> list[int]:
    """Return the generated images with the smallest scores, the smallest first."""
    return copies.generated.scores.argsort(stable=True)[:number].tolist()


def closest_rows(copies: Copies, paths: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of the table of closest pairs.

    Args:
        copies: of ``find_copies``.
        paths: files of the generated images.
    """
    found, generated = copies.found(), copies.generated
    ratios = generated.distances / generated.scales
    return [
        {
            "file": Path(paths[index]).name,
            "training": int(generated.places[index]),
            "score": float(generated.scores[index]),
            "copy": bool(found[index]),
            "ratios": dict(zip(copies.measures, ratios[index].tolist(), strict=True)),
        }
        for index in closest_pairs(copies)
    ]


def closest_picture(
    copies: Copies, training: AuditedSet, held_out: AuditedSet, generated: AuditedSet
) -> tuple[Image.Image, str]:
    """Draw the closest pairs of generated and of held-out images, with a caption."""
    closest = closest_pairs(copies)
    real = copies.held_out.scores.argsort(stable=True)[: len(closest)]
    rows = [
        ("generated", generated.stack(closest)),
        ("nearest training", training.stack(copies.generated.places[closest].tolist())),
        ("held-out, real", held_out.stack(copies.kept[real].tolist())),
        ("nearest training", training.stack(copies.held_out.places[real].tolist())),
    ]
    caption = (
        f"Above, the {len(closest)} generated images with the smallest scores, each over its training image; "
        "below, the held-out images with the smallest scores over theirs: how near other patients' images come."
    )
    return picture_of_rows(rows), caption
