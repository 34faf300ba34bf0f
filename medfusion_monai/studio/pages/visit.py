"""What one open page holds, in memory alone, until it is closed or reloaded."""

from __future__ import annotations

from collections.abc import Callable

from nicegui import ui

from medfusion_monai.studio.jobs import Job
from medfusion_monai.studio.picture import Picture
from medfusion_monai.studio.service import Studio


class Visit:
    """State that the tabs of a page share. Its jobs are cancelled when the page is closed or reloaded.

    Args:
        studio: with model, limits and queue.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.generated: list[Picture] = []
        self.edit: Callable[[Picture], None] = lambda _: None
        """Opens a picture in the editor; set by the frame."""
        self._jobs: list[Job] = []
        ui.context.client.on_delete(self.cancel_all)

    @property
    def class_names(self) -> list[str]:
        """Names of the model's classes, in label order."""
        return self.studio.model.class_names

    def follow(self, jobs: list[Job]) -> None:
        """Remember jobs that end with the page."""
        self._jobs = [job for job in self._jobs if not job.is_over] + jobs

    def cancel_all(self) -> None:
        """Cancel the jobs of the page."""
        for job in self._jobs:
            job.cancel()
