"""Writing a report: the same figures as HTML, Markdown and JSON in one folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from numbers import Integral, Real
from pathlib import Path, PurePosixPath
from typing import Any

from PIL.Image import Image

from medfusion_monai.report.page_parts import Document, Picture
from medfusion_monai.report.render import as_html, as_markdown
from medfusion_monai.report.sections import document
from medfusion_monai.report.tables import Measure
from medfusion_monai.runtime.files import DiskFullError, renamed_when_whole

NOT_FINITE = "the result is not a finite number"


def write_report(
    results: Mapping[str, Any],
    pictures: Mapping[str, Image],
    output: str | Path,
    name: str = "report",
    fidelity: Sequence[Measure] = (),
) -> None:
    """Write ``NAME.html``, ``NAME.md``, ``NAME.json``, the pictures and the plot of a sweep into a folder.

    The HTML is self-contained. Numbers that are not finite become None, with a note.

    Args:
        results: the figures: ``title`` and ``sets``; optional are ``summary``, ``warnings``, ``sets_note``,
            ``reference``, ``features``, ``fidelity``, ``published``, ``reconstructions``, ``reconstructions_note``,
            ``published_reconstructions``, ``sweep``, ``steering``, ``audit``, ``pictures`` and ``repeat``, each shown
            if present.
        pictures: from file name, as in ``results["pictures"]``, to picture.
        output: the folder, created if missing; files of an earlier report are replaced.
        name: of the files.
        fidelity: columns of ``document``, needed with ``fidelity``, ``published`` and ``sweep``.

    Raises:
        ValueError: for a folder that cannot be written, a full disk, or pictures other than those of the results.
    """
    _check_pictures(results, pictures)
    results = finite(results)
    report = document(results, fidelity)
    encoded = {file: _png(picture) for file, picture in pictures.items()} | _plots(report)
    html = as_html(report, encoded, f"{name}.json")
    files = {
        f"{name}.json": _bytes(json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n"),
        f"{name}.md": _bytes(as_markdown(report)),
        **encoded,
        f"{name}.html": _bytes(html),  # last: its presence means a complete report
    }
    output = Path(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            with renamed_when_whole(output / file) as partial:
                partial.write_bytes(content)
    except DiskFullError:
        raise
    except OSError as error:
        raise ValueError(
            f"cannot write the {name} into {output}: {error}; choose a folder that can be written"
        ) from error


def finite(value: Any) -> Any:
    """Convert results for JSON: plain numbers, and None with a note for a number that is not finite."""
    if isinstance(value, Mapping):
        cleaned = {str(key): finite(item) for key, item in value.items()}
        if any(value.get(key) is not None and cleaned[key] is None for key in ("value", "mean") if key in value):
            cleaned["note"] = cleaned.get("note") or NOT_FINITE
        return cleaned
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    return value


def _check_pictures(results: Mapping[str, Any], pictures: Mapping[str, Image]) -> None:
    listed = [item["file"] for item in results.get("pictures") or []]
    for name in listed:
        if PurePosixPath(name).name != name or "\\" in name or not name.lower().endswith(".png"):
            raise ValueError(f"picture {name!r} of the report must be a plain file name ending in .png")
    if sorted(listed) != sorted(pictures):
        raise ValueError(
            f"results list the pictures {sorted(listed)}, but {sorted(pictures)} were passed: both must be the same, "
            "each once"
        )


def _png(picture: Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _plots(report: Document) -> dict[str, bytes]:
    blocks = [block for section in report.sections for block in section.blocks]
    return {block.file: block.svg for block in blocks if isinstance(block, Picture) and block.svg}


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")  # file names that are not UTF-8 contain lone surrogates
