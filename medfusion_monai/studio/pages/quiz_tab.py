"""The tab that asks which of two images is real."""

from __future__ import annotations

from nicegui import ui

from medfusion_monai.studio.pages.quiz_view import QuizView
from medfusion_monai.studio.pages.text import text
from medfusion_monai.studio.pages.visit import Visit

WITHOUT_DATA = (
    "The quiz needs real images: start the studio again with --data DIR, a folder that medfusion prepare has written."
)


def show_quiz(visit: Visit) -> None:
    """Show the quiz, or what it needs."""
    with ui.element("div").classes("quiz"):
        text("h2", "Which image is real?")
        if visit.studio.data is None:
            ui.label(WITHOUT_DATA).classes("note")
        else:
            QuizView(visit, visit.studio.data)
