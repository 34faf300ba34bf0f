"""The tab that edits an image: before, after, and what changed."""

from __future__ import annotations

import asyncio
from typing import Any

from nicegui import events, ui

from medfusion_monai.studio import tasks
from medfusion_monai.studio.jobs import Job
from medfusion_monai.studio.pages.edit_results import EditResults
from medfusion_monai.studio.pages.edit_settings import WORDS, EditSettings
from medfusion_monai.studio.pages.fields import choice_field
from medfusion_monai.studio.pages.image_source import ACCEPTED, ImageSource
from medfusion_monai.studio.pages.job_view import JobView
from medfusion_monai.studio.pages.mask_editor import MaskEditor
from medfusion_monai.studio.pages.text import text
from medfusion_monai.studio.pages.upload_button import UploadButton
from medfusion_monai.studio.pages.visit import Visit
from medfusion_monai.studio.pages.work_area import work_area
from medfusion_monai.studio.picture import Picture
from medfusion_monai.studio.uploads import read_upload_mask


class EditTab:
    """The image, an edit with its settings, and what it makes.

    Args:
        visit: that it belongs to.
    """

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        controls, results = work_area(self._show_settings, "Edited image")
        with results:
            self.jobs = JobView(visit, self._show, self._finish)
            self.results = EditResults(visit)
        with controls:
            self.jobs.add_button("Apply", self._submit).props("unelevated").classes("run")
        self._choose()

    def _show_settings(self) -> None:
        text("h2", "Edit an image")
        self.source = ImageSource(self.visit, "Image", self._take_image)
        titles = {name: title for name, (title, _) in WORDS.items()}
        self.edit = choice_field("Edit", titles, "counterfactual").on_value_change(self._choose)
        self.about = ui.label().classes("hint")
        self.settings = EditSettings(self.visit)
        self.mask_box = ui.element("div")
        with self.mask_box:
            self.mask = MaskEditor(self.visit.studio.model.image_size)
            UploadButton(self.visit, "Upload mask", ACCEPTED, self._upload_mask, self._explain)

    def _choose(self) -> None:
        name = self.edit.value
        self.about.set_text(WORDS[name][1])
        self.settings.show(name)
        self.mask_box.set_visibility(name == "inpaint")

    def _take_image(self) -> None:
        self.mask.show(self.source.url)
        self.settings.set_own_label(self.source.label)
        self.results.clear()

    def _explain(self, problem: str) -> None:
        self.jobs.explain(problem)

    async def _upload_mask(self, event: events.UploadEventArguments) -> None:
        content = await event.file.read()
        if self.source.image is None:
            self._explain("Choose an image before its mask")
            return
        try:
            mask = await asyncio.to_thread(
                read_upload_mask,
                self.visit.studio,
                content,
                event.file.name,
                self.source.content,
                self.source.name,
            )
        except ValueError as error:
            self._explain(str(error))
            return
        self._explain("")
        self.mask.canvas.draw(mask)

    def _submit(self) -> list[Job]:
        name, image = self.edit.value, self.source.image
        if image is None:
            raise ValueError("Choose an image first: upload one, or use a generated one")
        if name == "classify":
            job = tasks.classify(self.visit.studio, image)
        else:
            job = tasks.edit(self.visit.studio, name, image, source=self.source.name, **self._given(name))
        self.results.begin(name, self.source)
        return [job]

    def _given(self, name: str) -> dict[str, Any]:
        given = self.settings.values(name)
        if name == "inpaint":
            if not bool(self.mask.canvas.mask.any()):
                raise ValueError("The mask is empty: draw on the image where new content should be sampled")
            given["mask"] = self.mask.canvas.mask
        return given

    def _show(self, pictures: list[Picture]) -> None:
        self.results.show(pictures)

    def _finish(self) -> None:
        if self.results.edit == "classify":
            self.results.show_classes(self.jobs.jobs[0].value)
