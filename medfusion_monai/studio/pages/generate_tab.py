"""The tab that samples images of a class."""

from __future__ import annotations

from nicegui import ui

from medfusion_monai.studio import tasks
from medfusion_monai.studio.audits import audit_verdict
from medfusion_monai.studio.jobs import Job
from medfusion_monai.studio.pages.copy_check import CopyCheck
from medfusion_monai.studio.pages.fields import class_field, number_field, value_of
from medfusion_monai.studio.pages.job_view import JobView
from medfusion_monai.studio.pages.picture_dialog import PictureDialog
from medfusion_monai.studio.pages.saving import SaveAll
from medfusion_monai.studio.pages.shown_image import GENERATED, picture_url, show_image
from medfusion_monai.studio.pages.text import text
from medfusion_monai.studio.pages.visit import Visit
from medfusion_monai.studio.pages.work_area import work_area
from medfusion_monai.studio.picture import Picture

AT_A_TIME = 4
"""Images that are sampled together: few, so that the first can be seen soon."""


class GenerateTab:
    """Settings, progress and the images of a class.

    Args:
        visit: that it belongs to.
    """

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        controls, results = work_area(self._show_settings, "Generated images")
        with results:
            self.jobs = JobView(visit, self.show, self._check_copies)
            self.copies = CopyCheck(visit)
            self.saving = SaveAll("generated")
            self.grid = ui.element("div").classes("grid")
            with self.grid:
                ui.label("Images appear here as they are made.").classes("empty")
            verdict = audit_verdict(visit.studio)
            if verdict:
                ui.label(f"Audit of the weights: {verdict}").classes("hint")
        with controls:
            self.jobs.add_button("Generate", self._submit).props("unelevated").classes("run")
        self.dialog = PictureDialog(visit)

    def _show_settings(self) -> None:
        limits, usual = self.visit.studio.limits, self.visit.studio.sampler_defaults
        text("h2", "Generate images")
        self.label = class_field("Class", self.visit.class_names)
        with ui.element("div").classes("pair"):
            self.count = number_field("Images", min(8, limits.count), 1, limits.count)
            self.seed = number_field("Seed", 0, 0, limits.seed)
            self.steps = number_field("Steps", usual["num_inference_steps"], 1, limits.num_inference_steps)
            self.guidance = number_field("Guidance", usual["guidance_scale"], 0, limits.guidance_scale, 0.5)
        ui.label(
            "The same settings give the same images. Guidance 1 is none; more follows the class more closely and "
            "varies less."
        ).classes("hint")

    def _submit(self) -> list[Job]:
        job = tasks.sample(
            self.visit.studio,
            self.label.value,
            value_of(self.count),
            value_of(self.seed),
            num_inference_steps=value_of(self.steps),
            guidance_scale=value_of(self.guidance, whole=False),
            batch_size=AT_A_TIME,
        )
        self.visit.generated = []
        self.grid.clear()
        self.copies.clear()
        self.saving.offer([])
        return [job]

    def _check_copies(self) -> None:
        self.copies.start(self.visit.generated)

    def show(self, pictures: list[Picture]) -> None:
        """Add the pictures that are new."""
        with self.grid:
            for number, picture in list(enumerate(pictures, 1))[len(self.visit.generated) :]:
                self._show_one(number, picture)
        self.visit.generated = pictures
        self.saving.offer(pictures)

    def _show_one(self, number: int, picture: Picture) -> None:
        name = picture.row["class_name"]
        with ui.element("button").classes("card").props('type="button"') as card:
            show_image(picture_url(picture), f"Generated image {number}, {name}", GENERATED, f"{number} · {name}")
        card.props["aria-label"] = f"Generated image {number}, {name}: details, editing, downloads"
        card.on("click", lambda: self.dialog.open(picture, number))
