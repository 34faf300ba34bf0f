"""The tab that goes from one image to another, as frames and as a film."""

from __future__ import annotations

from nicegui import ui

from medfusion_monai.studio import tasks
from medfusion_monai.studio.film import film_bytes
from medfusion_monai.studio.jobs import Job
from medfusion_monai.studio.pages.fields import class_field, number_field, value_of
from medfusion_monai.studio.pages.image_source import ImageSource
from medfusion_monai.studio.pages.job_view import JobView
from medfusion_monai.studio.pages.saving import SaveAll
from medfusion_monai.studio.pages.shown_image import data_url, picture_url, show_image, tag_of
from medfusion_monai.studio.pages.text import text
from medfusion_monai.studio.pages.visit import Visit
from medfusion_monai.studio.pages.work_area import work_area
from medfusion_monai.studio.picture import Picture

ENDS = {"seeds": "Two seeds", "images": "Two images"}


class FramesTab:
    """The ends, and the frames between them.

    Args:
        visit: that it belongs to.
    """

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        controls, results = work_area(self._show_settings, "Frames")
        with results:
            self.jobs = JobView(visit, lambda _: None, self._show)
            self.film = ui.element("div").classes("film")
            with self.film:
                ui.label("The frames appear here, with a slider and as a film.").classes("empty")
        with controls:
            self.jobs.add_button("Interpolate", self._submit).props("unelevated").classes("run")

    def _show_settings(self) -> None:
        limits = self.visit.studio.limits
        text("h2", "Interpolate")
        self.kind = ui.radio(ENDS, value="seeds").props('inline dense aria-label="Between"')
        with ui.element("div").classes("settings") as seeds:
            self.label = class_field("Class", self.visit.class_names)
            with ui.element("div").classes("pair"):
                self.first = number_field("First seed", 0, 0, limits.seed)
                self.last = number_field("Last seed", 1, 0, limits.seed)
        with ui.element("div").classes("settings") as images:
            self.start = ImageSource(self.visit, "First image")
            self.end = ImageSource(self.visit, "Last image")
        seeds.bind_visibility_from(self.kind, "value", value="seeds")
        images.bind_visibility_from(self.kind, "value", value="images")
        self.frames = number_field("Frames", min(12, limits.frames), 2, limits.frames)

    def _submit(self) -> list[Job]:
        frames = value_of(self.frames)
        if self.kind.value == "seeds":
            ends = value_of(self.first), value_of(self.last)
            job = tasks.interpolate(self.visit.studio, *ends, label=self.label.value, frames=frames)
        else:
            job = self._between_images(frames)
        self.film.clear()
        return [job]

    def _between_images(self, frames: int) -> Job:
        start, end = self.start, self.end
        if start.image is None or end.image is None:
            raise ValueError("Choose both images first: upload them, or use generated ones")
        labels = [start.label, end.label] if min(start.label, end.label) >= 0 else None
        names = f"{start.name}, {end.name}"
        return tasks.interpolate(self.visit.studio, start.image, end.image, label=labels, frames=frames, source=names)

    def _show(self) -> None:
        pictures = self.jobs.pictures
        with self.film:
            FilmView(pictures)


class FilmView:
    """One frame at a time by a slider, the film, and downloads.

    Args:
        pictures: the frames.
    """

    def __init__(self, pictures: list[Picture]) -> None:
        frames, tag = [picture_url(picture) for picture in pictures], tag_of(pictures[0])
        content = film_bytes([picture.image for picture in pictures], pictures[0].row)
        figure = show_image(frames[0], "A frame of the interpolation", tag, f"{len(frames)} frames")
        image = next(element for element in figure if isinstance(element, ui.image))

        def show_frame() -> None:
            place = int(slider.value)
            image.set_source(data_url(content) if play.value else frames[place - 1])
            words.set_text("Film" if play.value else f"Frame {place} of {len(frames)}")

        with ui.element("div").classes("film-line"):
            words = ui.label(f"Frame 1 of {len(frames)}").classes("slider-value")
            slider = ui.slider(min=1, max=len(frames), step=1, value=1, on_change=lambda: show_frame())
            slider.props["aria-label"] = "Frame"
            play = ui.switch("Play", on_change=lambda: show_frame())
        slider.bind_enabled_from(play, "value", lambda playing: not playing)
        ui.button("Download film (animated PNG)", on_click=lambda: ui.download.content(content, "film.png")).props(
            "outline no-caps"
        )
        SaveAll("frames").offer(pictures)
