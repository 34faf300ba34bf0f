"""A report under construction: its figures, its pictures, and what is needed to repeat it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from medfusion_monai.report.provenance import this_command, versions
from medfusion_monai.report.tables import Measure
from medfusion_monai.report.write import write_report

SHOWS_REAL_IMAGES = (
    "This report shows real images beside generated ones: share it only where the real images may be shared."
)


class Draft:
    """Collects the arguments of ``write_report``.

    Args:
        title: of the report.
        settings: that the figures depend on.
        seeds: by their purpose.
        fidelity: columns of the tables of fidelity and of the sweep, if the report has them.
    """

    def __init__(
        self, title: str, settings: Mapping[str, Any], seeds: Mapping[str, Any], fidelity: Sequence[Measure] = ()
    ) -> None:
        self.fidelity = fidelity
        self.pictures: dict[str, Image.Image] = {}
        self.results: dict[str, Any] = {
            "title": title,
            "warnings": [],
            "sets": [],
            "pictures": [],
            "repeat": {
                "versions": versions(),
                "commands": [this_command()],
                "checksums": {},
                "seeds": dict(seeds),
                "settings": dict(settings),
            },
        }

    def add_picture(self, file: str, picture: Image.Image, title: str, caption: str) -> None:
        """Add a picture."""
        self.pictures[file] = picture
        self.results["pictures"].append({"file": file, "title": title, "caption": caption})

    def add_warnings(self, *sentences: str) -> None:
        """Add warnings, sentences at the top of the report."""
        self.results["warnings"] += [sentence for sentence in sentences if sentence not in self.results["warnings"]]

    def note(self, part: str, **values: Any) -> None:
        """Add to what is needed to repeat the report: ``checksums``, ``seeds`` or ``settings``."""
        self.results["repeat"][part] |= values

    def write(self, output: str | Path, name: str = "report") -> dict[str, Any]:
        """Write the report's files, ``NAME.html`` and others, into a folder and return its figures."""
        if self.pictures:
            self.results.setdefault("summary", []).append(SHOWS_REAL_IMAGES)
        write_report(self.results, self.pictures, output, name, self.fidelity)
        return self.results
