"""The quiz of a reader study: which of two images of a class is the real one?"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medfusion_monai.evaluation.metrics.intervals import Figure, share_figure
from medfusion_monai.runtime.csv_cells import inert
from medfusion_monai.runtime.values import check_counts

COLUMNS = ("reader", "quiz_seed", "question", "class", "real_image", "generated_image", "real", "chosen", "correct")
"""Columns of the CSV file before ``seconds``."""


class Question(NamedTuple):
    """A real and a generated image of one class.

    Attributes:
        number: from 1, in the order in which they are asked.
        label: the class of both images.
        real_image: place of the real image among those of its class, from 0.
        generated_image: number of the generated image, as in ``Model.sample(label, n, seed)``, from 0.
        real: place of the real image, 1 (left) or 2 (right).
    """

    number: int
    label: int
    real_image: int
    generated_image: int
    real: int


class Answer(NamedTuple):
    """What a reader chose.

    Attributes:
        question: that was asked.
        chosen: place of the image taken for the real one, 1 or 2.
        seconds: from the images' display to the answer.
    """

    question: Question
    chosen: int
    seconds: float

    @property
    def is_correct(self) -> bool:
        """Whether the real image was chosen."""
        return self.chosen == self.question.real


def plan_quiz(real_counts: Sequence[int], questions: int, seed: int = 0) -> list[Question]:
    """Draw questions: classes as equal in number as their images allow, no image twice, sides and order at random.

    Args:
        real_counts: real images of each class, in label order; a class without any is not asked.
        questions: number of questions.
        seed: the same seed draws the same questions.

    Raises:
        ValueError: if there are fewer real images than questions.
    """
    check_counts(questions=questions)
    check_counts(0, seed=seed)
    if sum(real_counts) < questions:
        raise ValueError(
            f"a quiz of {questions} questions needs as many real images, and there are {sum(real_counts)}: "
            "ask fewer questions, or start with --data DIR of a larger data set"
        )
    generator = np.random.default_rng(seed)
    shares = _shares(real_counts, questions)
    chosen = [generator.permutation(count)[:share] for count, share in zip(real_counts, shares, strict=True)]
    pairs = [(label, int(real), place) for label, images in enumerate(chosen) for place, real in enumerate(images)]
    sides = generator.permutation(np.arange(questions) % 2) + 1
    drawn = [(*pairs[at], int(sides[at])) for at in generator.permutation(questions)]
    return [Question(number, *facts) for number, facts in enumerate(drawn, 1)]


def _shares(available: Sequence[int], total: int) -> list[int]:
    """Divide a total evenly over classes, none above what it has."""
    shares = [0] * len(available)
    while total:
        open_classes = [label for label, count in enumerate(available) if shares[label] < count]
        for label in open_classes[:total]:
            shares[label] += 1
        total -= min(total, len(open_classes))
    return shares


def score(answers: Sequence[Answer]) -> Figure:
    """Return the share of correct answers with Wilson's 95% interval; guessing gives 0.5.

    Raises:
        ValueError: without answers.
    """
    if not answers:
        raise ValueError("a score needs at least one answer")
    return share_figure(sum(answer.is_correct for answer in answers) / len(answers), len(answers))


def conclusion(figure: Figure) -> str:
    """Return in a sentence whether a score shows that real and generated images can be told apart."""
    if figure.low is not None and figure.low > 0.5:
        return "Real and generated images can be told apart: the interval lies above 50%, the share of guessing."
    if figure.high is not None and figure.high < 0.5:
        return "Generated images were taken for the real ones more often than by guessing: the interval is below 50%."
    return (
        "The interval contains 50%, the share of guessing: these answers do not show that the images can be told apart."
    )


def answers_csv(answers: Sequence[Answer], class_names: Sequence[str], seed: int, reader: str = "") -> str:
    """Return the answers as CSV, one row per question.

    Args:
        answers: in any order.
        class_names: in label order.
        seed: of ``plan_quiz`` and of the generated images.
        reader: a name or number, which may be empty.
    """
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow([*COLUMNS, "seconds"])
    for answer in sorted(answers, key=lambda answer: answer.question.number):
        number, label, real_image, generated_image, real = answer.question
        cells = [reader, seed, number, class_names[label], real_image, generated_image, _side(real)]
        table.writerow([*map(inert, cells), _side(answer.chosen), int(answer.is_correct), f"{answer.seconds:.1f}"])
    return file.getvalue()


def _side(place: int) -> str:
    return ("left", "right")[place - 1]
