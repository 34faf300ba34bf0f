"""The end of a quiz: score, interval, table of answers as CSV, and all pairs with what they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nicegui import ui
from torch import Tensor

from medfusion_monai.studio.pages.shown_image import GENERATED, REAL, picture_url, plain_url, show_image
from medfusion_monai.studio.pages.text import text
from medfusion_monai.studio.quiz import Answer, answers_csv, conclusion, score

if TYPE_CHECKING:
    from medfusion_monai.studio.pages.quiz_view import QuizView


def show_result(quiz: QuizView) -> None:
    """Show the score of a quiz whose questions are all answered."""
    figure, answers = score(quiz.answers), quiz.answers
    correct = sum(answer.is_correct for answer in answers)
    text("h3", f"{correct} of {len(answers)} correct").props('role="status"')
    if figure.value is not None and figure.low is not None and figure.high is not None:
        interval = f"95% interval {100 * figure.low:.0f}% to {100 * figure.high:.0f}% (Wilson)"
        ui.label(f"{100 * figure.value:.0f}%, {interval}. Guessing gives 50%.")
    ui.label(conclusion(figure))
    content = answers_csv(answers, quiz.visit.class_names, quiz.quiz_seed, quiz.reader.value or "").encode()
    ui.button("Download answers as CSV", on_click=lambda: ui.download.content(content, "quiz.csv")).props(
        "outline no-caps"
    )
    with ui.element("details"):
        text("summary", "Show the pairs")
        with ui.element("div").classes("pairs"):
            for answer, real in zip(answers, quiz.real, strict=True):
                _show_pair(quiz, answer, real)


def _show_pair(quiz: QuizView, answer: Answer, real: Tensor) -> None:
    number, label, _, generated_image, place = answer.question
    made = quiz.generated[label, generated_image]
    shown = [
        (plain_url(real), f"Real image of question {number}", REAL),
        (picture_url(made), f"Generated image of question {number}", GENERATED),
    ]
    with ui.element("div").classes("pair-shown"):
        for url, alt, tag in shown if place == 1 else reversed(shown):
            show_image(url, alt, tag)
        ui.label(f"{number} · {'correct' if answer.is_correct else 'wrong'} · {answer.seconds:.1f} s")
