"""Writing what edits make: files, a manifest, and a list of the images that were left out."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from medfusion_monai.editing.edit_patient import patient_of
from medfusion_monai.editing.edit_plan import EditPlan
from medfusion_monai.editing.edit_run import Edit
from medfusion_monai.editing.known_images import KnownImages
from medfusion_monai.runtime.csv_cells import inert
from medfusion_monai.runtime.distributed import from_first
from medfusion_monai.runtime.files import renamed_when_whole
from medfusion_monai.runtime.values import check_counts
from medfusion_monai.sampling.writer import ITEM_COLUMNS, SampleWriter, refuse_difference

UNREADABLE = "unreadable.csv"
"""The file that lists images that were left out."""


class EditWriter(SampleWriter):
    """Writes what an ``Edit`` makes, as ``SampleWriter`` writes samples, and continues a run that was stopped.

    The manifest also has the columns ``source`` and ``source_pixels``, name and checksum of the image that was edited,
    ``own_label``, its class as far as it is known (else -1), ``index``, the number of the variation or frame, and the
    figures of the edit. Edits without images, such as ``classify``, write only the manifest. A folder with
    edits of other images is refused.

    Args:
        plan: of ``edit_plan``.
        edit: makes the images.
        output_dir: folder of files and manifest.
        batch_size: images edited at a time.
        output_format: a name in ``FORMATS``.
        known: images of known class that the edit's threshold or temperature is from.

    Raises:
        ValueError: for an unknown format, or a batch size below 1.
    """

    item_columns = (*ITEM_COLUMNS, "source", "source_pixels", "own_label", "index")

    def __init__(
        self,
        plan: EditPlan,
        edit: Edit,
        output_dir: str | Path,
        batch_size: int = 16,
        output_format: str = "png",
        known: KnownImages | None = None,
    ) -> None:
        check_counts(batch_size=batch_size)
        super().__init__(plan, output_dir, {}, edit.model.path, batch_size, output_format)
        self.edit, self.unreadable, self.known, self.output_format = edit, plan.unreadable, known, output_format
        self.keep_patient, self.preprocessing = plan.keep_patient, plan.preprocessing
        self.places = {item["file"]: index for index, item in enumerate(plan)}

    @cached_property
    def settings(self) -> dict[str, str]:
        """Settings of every image, as text; asked for when the edit knows its threshold or temperature."""
        return self._current_settings()

    def _current_settings(self) -> dict[str, str]:
        settings = {
            **(self.known.settings if self.known is not None else {}),
            **self.edit.settings(self.batch_size, self.output_format),
            "keep_patient": self.keep_patient,
            "weights_sha256": self.edit.model.weights_sha256,
        }
        return {name: str(value) for name, value in settings.items()}

    def refuse_other_run(self) -> None:
        """Refuse a folder of another run before known images are scored, which can take hours.

        Raises:
            ValueError: if the folder contains another run.
        """
        if self.known is None or not self.known.plan:
            return  # later, with the first image
        expected = self._current_settings()
        del expected[self.known.setting]

        def check() -> None:
            for path in self.manifest.paths():
                for name, row in self.manifest.read(path).items():
                    refuse_difference(path, name, row, expected)

        from_first(check)

    @property
    def columns(self) -> list[str]:
        """Names of the manifest's columns."""
        return [*self.item_columns, *self.edit.extra_columns, *self.settings]

    def report(self) -> None:
        """Sort the manifest, and list the images that were left out in ``unreadable.csv``."""
        super().report()
        path = self.output_dir / UNREADABLE
        if self.rank == 0 and self.unreadable:
            with renamed_when_whole(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
                table = csv.writer(file, lineterminator="\n")
                table.writerow(["source", "reason"])
                table.writerows([inert(source), inert(reason)] for source, reason in self.unreadable.items())
        elif self.rank == 0:
            path.unlink(missing_ok=True)

    def _write_batch(self, images: Tensor, copied: Any, rows: Sequence[Mapping[str, Any]]) -> int:
        if copied is not None:
            copied.synchronize()
        rows = [{**row, **self.edit.figures(output)} for row, output in zip(rows, images, strict=True)]
        if self.edit.kind.writes_images:
            return super()._write_batch(images, None, rows)
        self._note(rows)
        return len(rows)

    def _write(self, image: Tensor, row: Mapping[str, Any]) -> None:
        place = self.places[row["file"]]
        noted: dict[str, Any] = {**row, "instance": place + 1}
        if self.keep_patient:
            noted["patient"] = patient_of(self.plan[place]["path"], self.output_format, self.preprocessing)
        super()._write(image, noted)

    def _is_there(self, item: Mapping[str, Any]) -> bool:
        return super()._is_there(item) if self.edit.kind.writes_images else item["file"] in self.written
