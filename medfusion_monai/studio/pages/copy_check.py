"""What the audit's copy guard says of the images that are shown."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from nicegui import ui

from medfusion_monai.studio import tasks
from medfusion_monai.studio.pages.job_view import JobView, counted
from medfusion_monai.studio.pages.visit import Visit
from medfusion_monai.studio.picture import Picture


class CopyCheck:
    """Checks images for copies of training images where the audit of the weights has a guard.

    Args:
        visit: that it belongs to.
    """

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        self.has_guard = visit.studio.audit is not None and visit.studio.audit.guard is not None
        self.answer = ui.label().classes("outcome").props('role="status"')
        self.jobs = JobView(visit, lambda _: None, self._show)

    def clear(self) -> None:
        """Show nothing, and check nothing any more."""
        self.jobs.cancel()
        self.answer.set_text("")

    def start(self, pictures: Sequence[Picture]) -> None:
        """Check pictures; without a guard, do nothing."""
        if self.has_guard:
            images = torch.stack([picture.image for picture in pictures])
            self.jobs.start(lambda: [tasks.check_copies(self.visit.studio, images)])

    def _show(self) -> None:
        copies = self.jobs.jobs[0].value.copies.tolist()
        self.answer.set_text(described(copies))
        self.jobs.outcome.set_text("")


def described(copies: Sequence[bool]) -> str:
    """Return what a guard found, by the numbers of the images from 1."""
    flagged = [str(number) for number, is_copy in enumerate(copies, 1) if is_copy]
    if not flagged:
        return f"Copy guard: no copy of a training image among {counted(len(copies), 'image')}, by the audit's rule."
    what = "a copy of a training image" if len(flagged) == 1 else "copies of training images"
    found = f"Copy guard: {counted(len(flagged), 'image')} may be {what}: number {', '.join(flagged)}."
    return f"{found} Look at the nearest training images before you share any."
