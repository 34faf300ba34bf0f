"""Progress, time left, cancel button and outcome of the jobs that a tab starts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from nicegui import ui

from medfusion_monai.runtime.errors import short_message
from medfusion_monai.studio.jobs import Job
from medfusion_monai.studio.pages.visit import Visit
from medfusion_monai.studio.picture import Picture

logger = logging.getLogger(__name__)

INTERVAL = 0.3
"""Seconds between two looks at the jobs."""


class JobView:
    """Shows how jobs proceed.

    Args:
        visit: that they belong to.
        on_look: called with all pictures so far, at each look that finds new ones and when all jobs are over.
        on_done: called when all jobs are done, not if one failed or was cancelled.
    """

    def __init__(
        self, visit: Visit, on_look: Callable[[list[Picture]], None], on_done: Callable[[], object] = lambda: None
    ) -> None:
        self.visit, self.on_look, self.on_done = visit, on_look, on_done
        self.jobs: list[Job] = []
        self.buttons: list[ui.button] = []
        """Disabled while jobs run."""
        self._seen, self._begun = 0, 0.0
        with ui.element("div").classes("job-view") as self.top:
            with ui.element("div").classes("job") as self.box:
                self.bar = ui.linear_progress(0, show_value=False, size="6px").props('aria-label="Progress" rounded')
                with ui.element("div").classes("job-line"):
                    self.status = ui.label()
                    ui.button("Cancel", on_click=self.cancel).props("outline no-caps dense").classes("cancel")
            self.outcome = ui.label().classes("outcome").props('role="status"')
            self.problem = ui.label().classes("problem").props('role="alert"')
        self.box.set_visibility(False)
        self.problem.set_visibility(False)
        self.timer = ui.timer(INTERVAL, self._look, active=False)

    def add_button(self, title: str, make: Callable[[], list[Job]]) -> ui.button:
        """Show a button that starts jobs, disabled while they run, where elements are being added."""
        button = ui.button(title, on_click=lambda: self.start(make)).props("no-caps")
        self.buttons.append(button)
        return button

    def start(self, make: Callable[[], list[Job]]) -> None:
        """Start the jobs that a function submits, or show why they were refused."""
        self.explain("")
        try:
            self.jobs = make()
        except ValueError as error:
            self.explain(str(error))
            return
        except Exception as error:  # else the page shows nothing
            logger.exception("a request failed")
            self.explain(f"Unexpected {type(error).__name__}: {short_message(error)}. See the terminal")
            return
        self.visit.follow(self.jobs)
        self._seen, self._begun = 0, time.monotonic()
        self._open(True)
        self.outcome.set_text("Started")
        ui.run_javascript(
            f"if (matchMedia('(max-width: 48rem)').matches) getHtmlElement({self.top.id}).scrollIntoView()"
        )
        self._look()

    def cancel(self) -> None:
        """Cancel all jobs."""
        for job in self.jobs:
            job.cancel()

    def explain(self, problem: str) -> None:
        """Show a problem, or none if the text is empty."""
        self.problem.set_text(problem)
        self.problem.set_visibility(bool(problem))

    @property
    def pictures(self) -> list[Picture]:
        """All pictures so far, in the order of the jobs."""
        return [picture for job in self.jobs for picture in list(job.pictures)]

    def _open(self, is_open: bool) -> None:
        self.box.set_visibility(is_open)
        self.timer.active = is_open
        for button in self.buttons:
            button.set_enabled(not is_open)

    def _look(self) -> None:
        over = all(job.is_over for job in self.jobs)  # before the pictures, so that none is missed
        pictures = self.pictures
        if len(pictures) > self._seen:
            self._seen = len(pictures)
            self.on_look(pictures)
        if over:
            self._close(pictures)
            return
        self.bar.set_value(sum(job.progress for job in self.jobs) / len(self.jobs))
        self.status.set_text(self._describe())

    def _describe(self) -> str:
        current = next((job for job in self.jobs if not job.is_over), self.jobs[-1])
        if current.state == "waiting":
            before = self.visit.studio.jobs.place(current)
            return f"Waiting: {counted(before, 'job')} before this one" if before else "Starting"
        left = current.seconds_left
        share = sum(job.progress for job in self.jobs) / len(self.jobs)
        rest = "estimating the time left" if left is None else f"about {spoken(left)} left"
        return f"{100 * share:.0f}% · {rest}" + (f" · {counted(self._seen, 'image')} so far" if self._seen else "")

    def _close(self, pictures: list[Picture]) -> None:
        self._open(False)
        failed = next((job for job in self.jobs if job.state == "failed"), None)
        if failed is not None:
            self.outcome.set_text("")
            self.explain(failed.error or "The job failed: see the terminal of medfusion studio")
        elif any(job.state == "cancelled" for job in self.jobs):
            kept = f"; {counted(len(pictures), 'image')} finished before" if pictures else ""
            self.outcome.set_text(f"Cancelled{kept}")
        else:
            self.outcome.set_text(f"Done in {spoken(time.monotonic() - self._begun)}")
            self.on_done()


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def spoken(seconds: float) -> str:
    """Return a duration for people."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min"
