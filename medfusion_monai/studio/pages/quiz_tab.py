"""The tab that asks which of two images is real, and keeps score."""

from __future__ import annotations

import asyncio
import time

from nicegui import events, ui
from torch import Tensor

from medfusion_monai.studio import tasks
from medfusion_monai.studio.jobs import Job
from medfusion_monai.studio.pages.fields import number_field, value_of
from medfusion_monai.studio.pages.job_view import JobView
from medfusion_monai.studio.pages.quiz_result import show_result
from medfusion_monai.studio.pages.shown_image import plain_url, show_image
from medfusion_monai.studio.pages.text import text
from medfusion_monai.studio.pages.visit import Visit
from medfusion_monai.studio.quiz import Answer, Question, plan_quiz

KEYS = {"1": 1, "ArrowLeft": 1, "2": 2, "ArrowRight": 2}
WITHOUT_DATA = (
    "The quiz needs real images: start the studio again with --data DIR, a folder that medfusion prepare has written."
)


class QuizTab:
    """Settings of a quiz, its questions, and the score.

    Args:
        visit: that it belongs to.
    """

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        self.questions: list[Question] = []
        self.answers: list[Answer] = []
        self.real: list[Tensor] = []
        self.quiz_seed, self._asked_at = 0, 0.0
        with ui.element("div").classes("quiz"):
            text("h2", "Which image is real?")
            if visit.studio.data is None:
                ui.label(WITHOUT_DATA).classes("note")
                return
            self.setup = ui.element("section").props('aria-label="Settings"')
            with self.setup:
                self._show_settings(visit.studio.data)
            self.jobs = JobView(visit, lambda _: None, self._begin)
            self.jobs.buttons.append(self.button)
            self.stage = ui.element("section").classes("stage").props('tabindex=-1 aria-label="Question"')
            self.stage.on("keydown", self._press, args=["key", "repeat"])

    def _show_settings(self) -> None:
        data, limits = self.visit.studio.data, self.visit.studio.limits
        most = min(limits.count, sum(data.counts))
        ui.label(
            "Each question shows a real and a generated image of the same class. There is no answer before the end."
        )
        with ui.element("div").classes("pair"):
            self.number = number_field("Questions", min(20, most), 1, most)
            self.seed = number_field("Seed", 0, 0, limits.seed)
            self.reader = ui.input("Reader (optional)").props("outlined dense maxlength=80").classes("field")
        self.button = ui.button("Start", on_click=self._start).props("unelevated no-caps").classes("run")

    async def _start(self) -> None:
        data = self.visit.studio.data
        self.jobs.explain("")
        self.stage.clear()
        try:
            self.quiz_seed = value_of(self.seed)
            self.questions = plan_quiz(data.counts, value_of(self.number), self.quiz_seed)
            self.real = await asyncio.to_thread(
                lambda: [data.image(question.label, question.real_image) for question in self.questions]
            )
        except ValueError as error:
            self.jobs.explain(str(error))
            return
        self.answers = []
        self.jobs.start(self._submit)

    def _submit(self) -> list[Job]:
        labels = sorted({question.label for question in self.questions})
        counts = [sum(question.label == label for question in self.questions) for label in labels]
        return [
            tasks.sample(self.visit.studio, label, count, self.quiz_seed)
            for label, count in zip(labels, counts, strict=True)
        ]

    def _begin(self) -> None:
        self.generated = {
            (int(picture.row["label"]), number): picture
            for job in self.jobs.jobs
            for number, picture in enumerate(job.pictures)
        }
        self.setup.set_visibility(False)
        self._ask()

    def _ask(self) -> None:
        question = self.questions[len(self.answers)]
        real, made = self.real[len(self.answers)], self.generated[question.label, question.generated_image].image
        images = [real, made] if question.real == 1 else [made, real]
        self.stage.clear()
        with self.stage:
            name = self.visit.class_names[question.label]
            ui.label(f"Question {question.number} of {len(self.questions)} · {name}").classes("quiz-head").props(
                'role="status"'
            )
            with ui.element("div").classes("duo"):
                for place, image in enumerate(images, 1):
                    self._show_choice(place, image)
            ui.label("One of the two is generated. Choose the real one: click, or press 1 or 2, or ← or →.").classes(
                "hint"
            )
        self.stage.run_method("focus")
        self._asked_at = time.monotonic()

    def _show_choice(self, place: int, image: Tensor) -> None:
        side = ("Left", "Right")[place - 1]
        with ui.element("button").classes("card").props('type="button"') as card:
            show_image(plain_url(image), f"{side} image", caption=f"{place} · {side.lower()}")
        card.props["aria-label"] = f"{side} image is the real one"
        card.on("click", lambda: self._answer(place))

    def _press(self, event: events.GenericEventArguments) -> None:
        if event.args["key"] in KEYS and not event.args["repeat"]:
            self._answer(KEYS[event.args["key"]])

    def _answer(self, place: int) -> None:
        if not self.questions or len(self.answers) == len(self.questions):
            return
        seconds = time.monotonic() - self._asked_at
        self.answers.append(Answer(self.questions[len(self.answers)], place, seconds))
        if len(self.answers) < len(self.questions):
            self._ask()
            return
        self.stage.clear()
        with self.stage:
            show_result(self)
            ui.button("New quiz", on_click=self._again).props("unelevated no-caps")
        self.stage.run_method("focus")

    def _again(self) -> None:
        self.stage.clear()
        self.questions, self.real, self.generated = [], [], {}
        self.setup.set_visibility(True)
