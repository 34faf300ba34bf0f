"""The quiz: which questions are drawn, how answers are scored and written."""

import csv
import io
from collections import Counter

import pytest

from medfusion_monai.studio.quiz import Answer, Question, answers_csv, conclusion, plan_quiz, score

CLASSES = ["normal", "=enlarged"]


def answers(correct, wrong):
    """Return answers to questions whose real image is the left one."""
    chosen = [1] * correct + [2] * wrong
    return [Answer(Question(number, 0, number, number, 1), side, 1.0) for number, side in enumerate(chosen, 1)]


def test_classes_are_asked_equally_often():
    assert Counter(question.label for question in plan_quiz([50, 50], 20)) == {0: 10, 1: 10}


def test_a_class_with_few_images_leaves_its_questions_to_the_others():
    assert Counter(question.label for question in plan_quiz([50, 3, 0], 20)) == {0: 17, 1: 3}


def test_no_image_is_shown_twice():
    questions = plan_quiz([10, 10], 20)
    assert len({(question.label, question.real_image) for question in questions}) == 20
    assert len({(question.label, question.generated_image) for question in questions}) == 20


def test_generated_images_are_the_first_of_their_class():
    numbers = [question.generated_image for question in plan_quiz([10, 10], 12) if question.label == 1]
    assert sorted(numbers) == list(range(6))


def test_the_real_image_is_on_either_side_equally_often():
    assert Counter(question.real for question in plan_quiz([50, 50], 20)) == {1: 10, 2: 10}


def test_sides_do_not_follow_the_class_or_the_order():
    plans = [plan_quiz([50, 50], 20, seed) for seed in range(20)]
    first_half = sum(question.real == 1 for plan in plans for question in plan[:10])
    first_class = sum(question.real == 1 for plan in plans for question in plan if question.label == 0)
    assert 70 < first_half < 130  # of 200, 4.2 standard deviations either way
    assert 70 < first_class < 130


def test_a_seed_draws_the_same_questions_again_and_another_seed_others():
    assert plan_quiz([50, 50], 20, 7) == plan_quiz([50, 50], 20, 7)
    assert plan_quiz([50, 50], 20, 7) != plan_quiz([50, 50], 20, 8)


def test_more_questions_than_real_images_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match="a quiz of 20 questions needs as many real images, and there are 7"):
        plan_quiz([4, 3], 20)


def test_score_has_the_interval_of_wilson():
    figure = score(answers(15, 5))  # Newcombe 1998: 15 of 20
    assert figure.value == 0.75
    assert (figure.low, figure.high) == (pytest.approx(0.5313, abs=1e-4), pytest.approx(0.8881, abs=1e-4))


def test_no_answer_has_no_score():
    with pytest.raises(ValueError, match="at least one answer"):
        score([])


@pytest.mark.parametrize(
    ("correct", "wrong", "said"),
    [(15, 5, "can be told apart"), (12, 8, "do not show"), (2, 18, "more often than by guessing")],
)
def test_conclusion_says_on_which_side_of_guessing_the_interval_lies(correct, wrong, said):
    assert said in conclusion(score(answers(correct, wrong)))


def test_csv_holds_one_row_per_answer_in_the_order_of_the_questions():
    given = [Answer(Question(2, 1, 4, 0, 2), 1, 3.26), Answer(Question(1, 0, 9, 1, 1), 1, 0.5)]
    rows = list(csv.DictReader(io.StringIO(answers_csv(given, CLASSES, 7, "R1"))))
    assert [row["question"] for row in rows] == ["1", "2"]
    assert rows[0] == {
        "reader": "R1",
        "quiz_seed": "7",
        "question": "1",
        "class": "normal",
        "real_image": "9",
        "generated_image": "1",
        "real": "left",
        "chosen": "left",
        "correct": "1",
        "seconds": "0.5",
    }
    assert (rows[1]["real"], rows[1]["chosen"], rows[1]["correct"], rows[1]["seconds"]) == ("right", "left", "0", "3.3")


def test_names_that_a_spreadsheet_would_run_are_inert_in_the_csv():
    row = answers_csv([Answer(Question(1, 1, 0, 0, 1), 1, 1.0)], CLASSES, 0, "=1+1").splitlines()[1]
    assert row.startswith("'=1+1,0,1,'=enlarged,")
