"""A picture of the first samples of each arm, not selected."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from torch import Tensor

mpl.use("Agg")
EACH = 4
"""Images of each class in a row."""


def save_picture(rows: Mapping[str, Tensor], path: Path) -> None:
    """Write a row per arm: images (2 * EACH, 1, H, W) in [0, 1], those without a finding first."""
    figure = Figure(figsize=(8.6, 1.02 * len(rows) + 0.3))
    axes = figure.subplots(len(rows), 2 * EACH, squeeze=False, gridspec_kw={"wspace": 0.03, "hspace": 0.03})
    for place, (name, images) in enumerate(rows.items()):
        for column, image in enumerate(images):
            axis = axes[place, column]
            axis.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set_visible(False)
        axes[place, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    for column, title in ((0, "no finding"), (EACH, "effusion")):
        axes[0, column].set_title(title, fontsize=9, loc="left")
    figure.savefig(path, dpi=110, bbox_inches="tight")
