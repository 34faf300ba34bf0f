"""The sweep over sampling steps as a drawing: SVG by hand, with nothing that a browser would have to fetch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

WIDTH, HEIGHT = 480, 470
LEFT, RIGHT = 62, 398  # of the axes; series are named to the right of them
FONT = "font-family='system-ui, sans-serif' font-size='14'"
TITLE_LENGTH = 56  # characters that fit above a panel


class Series(NamedTuple):
    """A line of a panel: distinguished by colour (safe for the colour-blind), dashes and marker."""

    key: str
    name: str
    color: str
    dashes: str = ""
    hollow: bool = False
    shift: float = 0.0  # to the right, so that whiskers at the same place stay apart


class Axes(NamedTuple):
    """Where values lie in the drawing."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    top: float
    bottom: float

    def x(self, value: float) -> float:
        """Return the distance from the left edge."""
        span = self.x_high - self.x_low
        return (LEFT + RIGHT) / 2 if span == 0 else LEFT + 14 + (value - self.x_low) / span * (RIGHT - LEFT - 28)

    def y(self, value: float) -> float:
        """Return the distance from the upper edge."""
        return self.bottom - (value - self.y_low) / (self.y_high - self.y_low) * (self.bottom - self.top)


FID = (Series("fid", "FID", "#222222"),)
SHARES = (
    Series("precision", "precision", "#0072b2", shift=-3.0),
    Series("recall", "recall", "#c24a00", "6 4", hollow=True, shift=3.0),
)


def sweep_svg(rows: Sequence[Mapping[str, Any]], title: str, fid_title: str) -> str:
    """Draw FID, and below it precision and recall, against the number of sampling steps, with 95% whiskers.

    Args:
        rows: ``num_inference_steps`` and the figures ``fid``, ``precision``, ``recall``.
        title: what the drawing shows, for those who cannot see it.
        fid_title: what stands above the upper panel.

    Returns:
        An ``svg`` element for HTML, 480 wide; empty where no figure has a value.
    """
    rows = sorted(rows, key=lambda row: row["num_inference_steps"])
    panels = [
        (series, heading)
        for series, heading in ((FID, fid_title), (SHARES, "Precision and recall"))
        if any(_value(row, line.key) is not None for row in rows for line in series)
    ]
    if not panels:
        return ""
    height = HEIGHT if len(panels) == 2 else HEIGHT // 2 + 25
    parts = [_text(WIDTH / 2 - 30, height - 6, "sampling steps", "middle")]
    for index, (series, heading) in enumerate(panels):
        parts += _panel(rows, series, heading, 34.0 + 225 * index)
    body = "\n".join(parts)
    return (
        f"<svg viewBox='0 0 {WIDTH} {height}' role='img' "
        f"aria-label='{escape(title)}' {FONT} fill='#222222'>\n{body}\n</svg>"
    )


def svg_file(svg: str) -> str:
    """Make a file of an ``svg`` element, which needs a namespace outside HTML."""
    return svg.replace("<svg ", "<svg xmlns='http://www.w3.org/2000/svg' ", 1) + "\n"


def ticks(low: float, high: float) -> list[float]:
    """Return three to seven round numbers at equal distances, from at most ``low`` to at least ``high``."""
    raw = max(high - low, 1e-9 * max(abs(high), 1.0)) / 4
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def _panel(rows: Sequence[Mapping[str, Any]], series: Sequence[Series], heading: str, top: float) -> list[str]:
    """Draw a panel: its heading, its axes, its lines and their names."""
    steps = [row["num_inference_steps"] for row in rows]
    grid = ticks(0.0, 1.0) if series is SHARES else ticks(*_range(rows, series))
    axes = Axes(min(steps), max(steps), grid[0], grid[-1], top, top + 160)
    parts = [_text(4, top - 16, _short(heading), "start", "font-weight='600'"), *_frame(axes, grid, steps)]
    parts += [part for line in series for part in _series(axes, rows, line)]
    return parts + _names(axes, rows, series)


def _value(row: Mapping[str, Any], key: str, end: str = "value") -> float | None:
    return (row.get(key) or {}).get(end)


def _range(rows: Sequence[Mapping[str, Any]], series: Sequence[Series]) -> tuple[float, float]:
    ends = ("value", "low", "high")
    found = [
        value
        for row in rows
        for line in series
        for end in ends
        if _value(row, line.key) is not None and (value := _value(row, line.key, end)) is not None
    ]
    return min(found), max(found)


def _frame(axes: Axes, grid: Sequence[float], steps: Sequence[float]) -> list[str]:
    """Draw the grid of a panel, its numbers, and the steps below it where there is room for them."""
    decimals = next((d for d in range(7) if all(abs(round(v, d) - v) < 1e-9 * max(1.0, abs(v)) for v in grid)), 6)
    parts = []
    for value in grid:
        y = axes.y(value)
        parts.append(f"<path d='M{LEFT} {y:.1f}H{RIGHT}' stroke='#d0d0d0'/>")
        parts.append(_text(LEFT - 8, y + 5, f"{value:.{decimals}f}", "end"))
    end = -math.inf
    for step in sorted(set(steps)):
        x = axes.x(step)
        parts.append(f"<path d='M{x:.1f} {axes.bottom}v5' stroke='#666666'/>")
        half = 4.5 * len(str(step))
        if x - half > end + 4:
            parts.append(_text(x, axes.bottom + 20, str(step), "middle"))
            end = x + half
    return parts


def _series(axes: Axes, rows: Sequence[Mapping[str, Any]], line: Series) -> list[str]:
    """Draw the line through a series' values, their whiskers and their markers; a missing value breaks the line."""
    path, marks, pen = "", [], "M"
    for row in rows:
        value = _value(row, line.key)
        if value is None:
            pen = "M"
            continue
        x, y = axes.x(row["num_inference_steps"]) + line.shift, axes.y(value)
        path += f"{pen}{x:.1f} {y:.1f}"
        pen = "L"
        low, high = _value(row, line.key, "low"), _value(row, line.key, "high")
        if low is not None and high is not None:
            marks.append(
                f"<path d='M{x - 4:.1f} {axes.y(low):.1f}h8m-4 0V{axes.y(high):.1f}m-4 0h8' "
                f"stroke='{line.color}' stroke-width='1.2' fill='none'/>"
            )
        marks.append(_marker(x, y, line))
    dashes = f" stroke-dasharray='{line.dashes}'" if line.dashes else ""
    return [f"<path d='{path}' stroke='{line.color}' stroke-width='2' fill='none'{dashes}/>", *marks]


def _marker(x: float, y: float, line: Series) -> str:
    if line.hollow:
        return (
            f"<rect x='{x - 4:.1f}' y='{y - 4:.1f}' width='8' height='8' fill='#ffffff' "
            f"stroke='{line.color}' stroke-width='2'/>"
        )
    return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4.5' fill='{line.color}'/>"


def _names(axes: Axes, rows: Sequence[Mapping[str, Any]], series: Sequence[Series]) -> list[str]:
    """Name the series to the right of their last values, at least a line apart; one alone has the panel's title."""
    if len(series) == 1:
        return []
    places = []
    for line in series:
        values = [value for row in rows if (value := _value(row, line.key)) is not None]
        if values:
            places.append((axes.y(values[-1]) + 5, line))
    places.sort(key=lambda place: place[0])
    parts, previous = [], -math.inf
    for y, line in places:
        previous = max(y, previous + 17)
        parts.append(_text(RIGHT + 8, previous, line.name, "start", f"style='fill:{line.color}'"))
    return parts


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' {more}>{escape(text)}</text>"


def _short(text: str) -> str:
    return text if len(text) <= TITLE_LENGTH else f"{text[: TITLE_LENGTH - 1]}\N{HORIZONTAL ELLIPSIS}"
