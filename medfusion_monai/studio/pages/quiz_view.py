"""A quiz from its settings to its score."""

from __future__ import annotations

import asyncio
import time

from nicegui import background_tasks, events, ui
from torch import Tensor

from medfusion_monai.studio import tasks
from medfusion_monai.studio.jobs import Job
from medfusion_monai.studio.pages.fields import number_field, value_of
from medfusion_monai.studio.pages.job_view import JobView
from medfusion_monai.studio.pages.quiz_result import show_result
from medfusion_monai.studio.pages.shown_image import plain_url, show_image
from medfusion_monai.studio.pages.visit import Visit
from medfusion_monai.studio.picture import Picture
from medfusion_monai.studio.quiz import Answer, Question, plan_quiz
from medfusion_monai.studio.real_data import RealData

KEYS = {"1": 1, "ArrowLeft": 1, "2": 2, "ArrowRight": 2}


class QuizView:
    """Settings of a quiz, its questions one at a time, and the result.

    Args:
        visit: that it belongs to.
        data: the real images.
    """

    def __init__(self, visit: Visit, data: RealData) -> None:
        self.visit, self.data = visit, data
        self.questions: list[Question] = []
        self.answers: list[Answer] = []
        self.real: list[Tensor] = []
        self.generated: dict[tuple[int, int], Picture] = {}
        self.quiz_seed, self._asked_at = 0, 0.0
        self.setup = ui.element("section").props('aria-label="Settings"')
        with self.setup:
            self._show_settings()
        self.jobs = JobView(visit, lambda _: None, lambda: background_tasks.create(self._begin()))
        with self.setup:
            self.jobs.add_button("Start", self._submit).props("unelevated").classes("run")
        self.stage = ui.element("section").classes("stage").props('tabindex=-1 aria-label="Question"')
        self.stage.on("keydown", self._press, args=["key", "repeat"])

    def _show_settings(self) -> None:
        limits = self.visit.studio.limits
        most = min(limits.count, sum(self.data.counts))
        ui.label(
            "Each question shows a real and a generated image of the same class. There is no answer before the end."
        )
        with ui.element("div").classes("pair"):
            self.number = number_field("Questions", min(20, most), 1, most)
            self.seed = number_field("Seed", 0, 0, limits.seed)
            self.reader = ui.input("Reader (optional)").props("outlined dense maxlength=80").classes("field")

    def _submit(self) -> list[Job]:
        self.quiz_seed = value_of(self.seed)
        self.questions = plan_quiz(self.data.counts, value_of(self.number), self.quiz_seed)
        self.answers = []
        asked = [question.label for question in self.questions]
        return [
            tasks.sample(self.visit.studio, label, asked.count(label), self.quiz_seed) for label in sorted(set(asked))
        ]

    async def _begin(self) -> None:
        for job in self.jobs.jobs:
            pictures = {(int(picture.row["label"]), number): picture for number, picture in enumerate(job.pictures)}
            self.generated.update(pictures)
        try:
            self.real = await asyncio.to_thread(self._read_real)
        except ValueError as error:
            self.jobs.explain(str(error))
            return
        self.setup.set_visibility(False)
        self._ask()

    def _read_real(self) -> list[Tensor]:
        return [self.data.image(question.label, question.real_image) for question in self.questions]

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
