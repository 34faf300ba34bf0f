"""Table cells from measured figures: number formats, best rows and footnotes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from medfusion_monai.report.page_parts import Cell, Column, Group, mark

DASH = "\N{EN DASH}"  # for a missing value
NOT_MEASURED = "not measured"
NOT_COMPARABLE = "not comparable"  # figures with this in their note are never ranked
COUNT_TOLERANCE = 1.1  # largest ratio of image counts at which figures that depend on them are ranked
UNEQUAL_COUNTS = (
    "not ranked between sets whose numbers of images differ by more than 10%, because the value depends on the number"
)


class Measure(NamedTuple):
    """A measure and how its figures are written.

    ``better`` is lower, higher or empty (never ranked). If ``counts_matter``, the value depends on the number of images
    and only sets of about equal size are ranked. ``about`` explains the measure above its table.
    """

    key: str
    title: str
    digits: int
    better: str = ""
    scale: float = 1.0
    published_digits: int = 2
    counts_matter: bool = False
    hint: str = ""
    about: str = ""


RECONSTRUCTION = (
    Measure("ms_ssim", "MS-SSIM", 3, "higher", published_digits=3),
    Measure("ms_ssim_paper", "MS-SSIM by the paper's script", 3, "higher", published_digits=3),
    Measure("ssim", "SSIM", 3, "higher", published_digits=3),
    Measure("mse", "MSE (1e-5)", 1, "lower", 1e5, published_digits=0),
    Measure("psnr", "PSNR (dB)", 2, "higher", published_digits=1),
    Measure("lpips", "LPIPS", 3, "lower", published_digits=3),
)
STEERING = (Measure("accuracy", "Accuracy", 3, hint="higher is better"), Measure("auc", "AUC", 3, hint="1 is perfect"))


def plain(text: Any) -> str:
    """Return a user's text on one line."""
    return " ".join(str(text).split())


def number(value: float, digits: int) -> str:
    """Format a number with fixed decimals, commas between thousands and a true minus; zero has no minus."""
    text = f"{value:,.{digits}f}"
    if not text.strip("-0.,"):
        text = text.lstrip("-")
    return text.replace("-", "\N{MINUS SIGN}")


def count_cell(count: Any) -> Cell:
    """Return the cell of a count; a dash for None."""
    return Cell(DASH if count is None else number(count, 0))


def figure_cell(figure: Mapping[str, Any] | None, measure: Measure, notes: list[str], best: bool = False) -> Cell:
    """Return the cell of a figure: value or mean with standard deviation, its 95% interval, its note as a footnote.

    Args:
        figure: ``value`` or ``mean``, optionally ``std``, ``low``, ``high``, ``note``; None if not measured.
        measure: how it is written.
        notes: footnotes of the table, to which the figure's note is added.
        best: whether it is in bold.
    """
    if figure is None:
        return Cell(DASH, marks=mark(notes, NOT_MEASURED))
    note = plain(figure.get("note") or "")
    value = value_of(figure)
    if value is None:
        return Cell(DASH, marks=mark(notes, note or "could not be computed"))
    text = number(value * measure.scale, measure.digits)
    if figure.get("std") is not None:
        text += f" ± {number(figure['std'] * measure.scale, measure.digits)}"
    interval = ""
    if figure.get("low") is not None and figure.get("high") is not None:
        low, high = (number(figure[end] * measure.scale, measure.digits) for end in ("low", "high"))
        interval = f"{low} to {high}"
    return Cell(text, interval, best, mark(notes, note) if note else "")


def value_of(figure: Mapping[str, Any]) -> float | None:
    """Return the value of a figure, or the mean of one that is a mean over images."""
    return figure.get("value", figure.get("mean"))


def published_cell(value: Any, measure: Measure) -> Cell:
    """Return the cell of a published value or pair of mean and standard deviation, with its published precision."""
    if value is None:
        return Cell(DASH)
    mean, std = value if isinstance(value, Sequence) else (value, None)
    return figure_cell({"mean": mean, "std": std}, measure._replace(digits=measure.published_digits), [])


def best_rows(rows: Sequence[Mapping[str, Any]], measure: Measure) -> set[int]:
    """Find the rows that are best by a measure; values that are displayed alike tie.

    Returns:
        Their indices; none if fewer than two rows have a value that can be ranked, or if the measure depends on the
        number of images and the rows differ in it.
    """
    values = {}
    for index, row in enumerate(rows):
        figure = row.get(measure.key) or {}
        value = value_of(figure)
        if value is not None and NOT_COMPARABLE not in (figure.get("note") or "").lower():
            values[index] = round(value * measure.scale, measure.digits)
            if measure.better == "lower":  # distances and errors: estimates below zero, as of KID, are no better
                values[index] = max(0.0, values[index])
    if not measure.better or len(values) < 2 or not counts_allow_ranking(rows, measure):
        return set()
    best = min(values.values()) if measure.better == "lower" else max(values.values())
    return {index for index, value in values.items() if value == best}


def counts_allow_ranking(rows: Sequence[Mapping[str, Any]], measure: Measure) -> bool:
    """Return whether the rows' numbers of images are similar enough to compare a measure."""
    counts = [row["count"] for row in rows if row.get("count") and (row.get(measure.key) or {})]
    return not measure.counts_matter or not counts or max(counts) <= COUNT_TOLERANCE * min(counts)


def measures_in(rows: Sequence[Mapping[str, Any]], measures: Sequence[Measure]) -> list[Measure]:
    """Return the measures that occur in any row."""
    return [measure for measure in measures if any(row.get(measure.key) is not None for row in rows)]


def measure_columns(
    measures: Sequence[Measure], groups: Sequence[Sequence[Mapping[str, Any]]], notes: list[str]
) -> list[Column]:
    """Return the columns of measures, with a footnote for those that cannot rank a group of rows."""
    columns = []
    for measure in measures:
        hint = measure.hint or (f"{measure.better} is better" if measure.better else "")
        unranked = any(len(rows) > 1 and not counts_allow_ranking(rows, measure) for rows in groups)
        columns.append(Column(measure.title, hint, "number", mark(notes, UNEQUAL_COUNTS) if unranked else ""))
    return columns


def measured_group(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    measures: Sequence[Measure],
    heads: Sequence[list[Cell]],
    notes: list[str],
) -> Group:
    """Return a group of rows of figures, ranked within the group.

    Args:
        title: of the group.
        rows: from a measure's key to its figure, and ``count``.
        measures: the columns.
        heads: the cells before the figures, one list per row.
        notes: footnotes of the table, to which those of the figures are added.
    """
    best = [best_rows(rows, measure) for measure in measures]
    cells = [
        [
            *head,
            *(
                figure_cell(row.get(measure.key), measure, notes, index in winners)
                for measure, winners in zip(measures, best, strict=True)
            ),
        ]
        for index, (row, head) in enumerate(zip(rows, heads, strict=True))
    ]
    return Group(title, cells)


def published_group(
    title: str, published: Mapping[str, Any], measures: Sequence[Measure], empty: int, notes: list[str]
) -> Group:
    """Return the group of published rows, never ranked, with their note at its title.

    Args:
        title: of the group.
        published: ``rows`` of name and values, and ``note``.
        measures: the columns.
        empty: number of cells between name and figures that published rows do not fill.
        notes: footnotes of the table.
    """
    rows = [
        [Cell(plain(row["name"])), *[Cell("")] * empty, *(published_cell(row.get(m.key), m) for m in measures)]
        for row in published.get("rows", [])
    ]
    note = plain(published.get("note") or "")
    return Group(title, rows, mark(notes, note) if note else "")


def grouped(rows: Sequence[Mapping[str, Any]], key: str) -> dict[Any, list[Mapping[str, Any]]]:
    """Group rows by ``key``, in order of appearance; rows without it come first."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row.get(key), []).append(row)
    return {name: groups[name] for name in sorted(groups, key=lambda name: name is not None)}


def without_counts(row: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the numbers of samples from the notes of a row, which has cells for them."""
    counts = f"{row.get('count')} samples against {row.get('reference_count')}"
    return {
        key: {**value, "note": (value.get("note") or "").removeprefix(counts).removeprefix("; ")}
        if isinstance(value, Mapping) and (value.get("note") or "").partition(";")[0] == counts
        else value
        for key, value in row.items()
    }


def any_best(groups: Sequence[Group]) -> bool:
    """Return whether any cell is in bold, which the caption then explains."""
    return any(cell.best for group in groups for row in group.rows for cell in row)
