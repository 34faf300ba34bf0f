"""The opening of a report: its findings in at most three sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medfusion_monai.report.audit_sections import conclusions
from medfusion_monai.report.tables import RECONSTRUCTION, number, plain, value_of

HEADLINES = {"fid": ("FID", 2), "precision": ("precision", 2), "recall": ("recall", 2)}
"""Names and decimals of the figures of the first sentence."""


def verdict(results: Mapping[str, Any], fid_title: str) -> list[str]:
    """Return how good images are, whether the label steers, and whether there are copies.

    Args:
        results: what ``report.json`` holds.
        fid_title: name of the FID, which states features other than Inception-v3's.
    """
    audit = conclusions(results["audit"]) if results.get("audit") else []
    quality = _fidelity(results, fid_title) or _reconstructions(results)
    steering = _steering(results)
    if not quality and not steering:
        return audit
    if not _compared(results):
        return [*quality, *audit]
    copies = "Whether images are copies of training images was not measured: medfusion audit measures it."
    return [
        *quality,
        *(steering or ["Whether the label steers was not measured."]),
        *(audit or [copies]),
    ]


def _compared(results: Mapping[str, Any]) -> bool:
    return bool(results.get("fidelity") or results.get("steering"))


def _fidelity(results: Mapping[str, Any], fid_title: str) -> list[str]:
    rows = [row for row in results.get("fidelity") or [] if row.get("class_name") is None]
    parts = []
    for row in rows:
        known = [(key, row[key]) for key in HEADLINES if row.get(key) and row[key].get("value") is not None]
        figures = [f"{HEADLINES[key][0]} {number(value['value'], HEADLINES[key][1])}" for key, value in known]
        parts.append(f"{row['count']:,} images of {plain(row['name'])} have {_listed(figures)}" if figures else "")
    parts = [part for part in parts if part]
    by = fid_title.removeprefix("FID")
    return [f"Against {rows[0]['reference_count']:,} real images{by}, {'; '.join(parts)}."] if parts else []


def _reconstructions(results: Mapping[str, Any]) -> list[str]:
    rows = results.get("reconstructions") or []
    if not rows:
        return []
    row, figures = rows[0], []
    for measure in RECONSTRUCTION:
        value = value_of(row.get(measure.key) or {})
        if value is not None and measure.key in ("ms_ssim", "psnr"):
            figures.append(f"{measure.title} {number(value * measure.scale, measure.digits)}")
    if not figures:
        return []
    split = f" of split {plain(row['split'])}" if row.get("split") else ""
    return [f"Reconstructions of {row['count']:,} images{split} by {plain(row['name'])} have {_listed(figures)}."]


def _steering(results: Mapping[str, Any]) -> list[str]:
    answers = (results.get("steering") or {}).get("answers") or {}
    found = [f"{plain(name)}: {found['answer']} ({plain(found['why'])})" for name, found in answers.items()]
    return [f"Does the label steer? {'; '.join(found)}."] if found else []


def _listed(items: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))
