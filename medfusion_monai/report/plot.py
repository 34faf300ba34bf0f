"""The plot of quality against the number of sampling steps: figure 7 of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from textwrap import fill
from typing import Any

import numpy as np

from medfusion_monai.report.pictures import drawable

STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "sweep",  # the same plot has the same bytes
    "axes.formatter.useoffset": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#d0d0d0",
    "legend.frameon": False,
}
WITHOUT_DATE = dict.fromkeys(("Creator", "Date", "Format", "Type"))
TITLE_LENGTH = 56  # characters per line above a panel
LABELS = 10  # tick labels that fit below
# Distinguished by colour (safe for the colour-blind), dashes and marker.
LINES: dict[str, dict[str, Any]] = {
    "fid": {"color": "#222222", "marker": "o"},
    "precision": {"color": "#0072b2", "marker": "o"},
    "recall": {"color": "#c24a00", "marker": "s", "fillstyle": "none", "linestyle": "--"},
}
SHIFTS = {"fid": 0.0, "precision": -0.008, "recall": 0.008}  # of the width: keeps whiskers at the same step apart


def sweep_svg(rows: Sequence[Mapping[str, Any]], fid_title: str) -> bytes:
    """Draw FID, and below it precision and recall, against the number of sampling steps, with 95% whiskers.

    Args:
        rows: ``num_inference_steps`` and the figures ``fid``, ``precision``, ``recall``.
        fid_title: title of the upper panel.

    Returns:
        An SVG file; empty if no figure has a value.
    """
    rows = sorted(rows, key=lambda row: row["num_inference_steps"])
    known = [key for key in LINES if not np.isnan(_figures(rows, key)[0]).all()]
    titled = {fid_title: ["fid"], "Precision and recall": ["precision", "recall"]}
    panels = {title: [key for key in keys if key in known] for title, keys in titled.items() if {*keys} & {*known}}
    if not panels:
        return b""
    # Imported here because matplotlib loads slowly.
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(5.6, 0.5 + 2.1 * len(panels)), layout="constrained")
        column = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, (title, keys) in zip(column, panels.items(), strict=True):
            _draw(axes, rows, keys)
            axes.set_title(fill(drawable(title), TITLE_LENGTH), fontsize=10, fontweight="bold", parse_math=False)
        axes.set_xlabel("sampling steps")
        text = StringIO()
        figure.savefig(text, format="svg", metadata=WITHOUT_DATE)
    svg = text.getvalue()
    return svg[svg.index("<svg") :].encode()  # without the document type, which contains a URL


def _draw(axes: Any, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    """Draw the lines of a panel with their whiskers; a missing value breaks a line."""
    steps = np.array([row["num_inference_steps"] for row in rows])
    span = np.ptp(steps) or 1
    for key in keys:
        values, low, high = _figures(rows, key)
        places, look = steps + SHIFTS[key] * span, LINES[key]
        # Around the middle of the interval, because a value may lie outside it.
        whiskers = {"fmt": "none", "ecolor": look["color"], "elinewidth": 1, "capsize": 3}
        axes.errorbar(places, (low + high) / 2, (high - low) / 2, **whiskers)
        axes.plot(places, values, **look, clip_on=False, label=key, gid=key)
    middle = (steps[0] + steps[-1]) / 2
    axes.set_xlim(middle - 0.54 * span, middle + 0.54 * span)
    axes.set_xticks(_apart(steps.tolist(), span / LABELS))
    if "fid" not in keys:
        axes.set_ylim(0, 1)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def _figures(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """Return value, low and high of a figure in each row, (3, N), NaN if missing."""
    found = [row.get(key) or {} for row in rows]
    known = [figure if figure.get("value") is not None else {} for figure in found]
    return np.array([[figure.get(end) for figure in known] for end in ("value", "low", "high")], dtype=float)


def _apart(steps: Sequence[int], distance: float) -> list[int]:
    """Return those of sorted numbers whose tick labels do not overlap."""
    kept = list(steps[:1])
    for step in steps:
        if step - kept[-1] >= distance:
            kept.append(step)
    return kept
