import math

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torchmetrics.functional.classification import binary_auroc, multiclass_accuracy, multiclass_auroc

from medfusion_monai.evaluation.metrics.classifier import LabelledImages
from medfusion_monai.evaluation.metrics.label_steering import (
    areas_under_curve,
    balanced_accuracies,
    label_steering,
    steering_answers,
    steering_figures,
)

NAMES = ("small", "large")


def drawn_scores(count, num_classes, seed=0):
    """Probabilities that are somewhat right, with ties among them, and labels of unequal classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, generator=generator) ** 2 * num_classes).long()
    labels[:num_classes] = torch.arange(num_classes)
    logits = torch.randn(count, num_classes, generator=generator) + torch.nn.functional.one_hot(labels, num_classes)
    return logits.mul(2).round().div(2).double().softmax(dim=1), labels


def squares(labels, seed=0, channels=1):
    """Images with a bright square, large for label 1."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.2 * torch.rand(len(labels), channels, 32, 32, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        side = 16 if label else 6
        top, left = torch.randint(32 - side, (2,), generator=generator).tolist()
        image[:, top : top + side, left : left + side] += 0.6
    return images


def labelled(count, seed=0, wrong=0.0, channels=1):
    """Images whose label is wrong for a share of each class."""
    labels = torch.arange(count) % 2
    images = squares(labels, seed, channels)
    labels[: round(wrong * count)] = 1 - labels[: round(wrong * count)]
    return LabelledImages(images, labels)


def steering(train, test, generated, class_names=NAMES, **settings):
    settings = {"seeds": (0,), "steps": 40, "size": 32, "replicates": 50} | settings
    rows = label_steering(train, test, generated, class_names, **settings)
    return {(row["trained_on"], row["tested_on"]): row for row in rows}


@pytest.fixture(scope="module")
def rows():
    generated = {
        "steered": labelled(80, 2),
        "reversed": labelled(80, 3, wrong=1.0),
        "blind": labelled(80, 4, wrong=0.5),
    }
    return steering(labelled(100), labelled(60, 1), generated, seeds=(0, 1))


@pytest.mark.parametrize(
    ("trained_on", "tested_on", "low", "high"),
    [
        ("real", "real test", 0.95, 1.0),
        ("real", "steered", 0.95, 1.0),
        ("real", "reversed", 0.0, 0.05),
        ("real", "blind", 0.45, 0.55),
        ("steered", "real test", 0.95, 1.0),
        ("reversed", "real test", 0.0, 0.05),
        ("real and steered", "real test", 0.95, 1.0),
    ],
)
def test_accuracy_tells_what_the_labels_are_worth(rows, trained_on, tested_on, low, high):
    row = rows[trained_on, tested_on]
    assert low <= row["accuracy"]["value"] <= high
    assert low <= row["auc"]["value"] <= high


def test_rows_say_what_was_trained_and_tested(rows):
    row = rows["real and steered", "real test"]
    assert (row["train_count"], row["test_count"], row["seeds"]) == (180, 60, 2)
    assert len(rows) == 1 + 3 * 3


def test_images_of_one_shade_give_chance_with_an_interval():
    plain = LabelledImages(torch.full((40, 1, 32, 32), 0.5), torch.arange(40) % 2)
    row = steering(plain, plain, {}, steps=5)["real", "real test"]
    assert row["accuracy"]["value"] == row["auc"]["value"] == 0.5
    for figure in (row["accuracy"], row["auc"]):
        assert figure["low"] < 0.4 < 0.6 < figure["high"]  # Wilson's interval of 40 images


def test_class_with_too_few_images_gives_no_figures_that_need_it():
    few = labelled(80, 2)
    few = LabelledImages(few.images[: 40 + 4], torch.cat([torch.zeros(40), torch.ones(4)]).long())
    rows = steering(labelled(60), labelled(60, 1), {"few": few}, steps=5)
    assert rows["real", "real test"]["accuracy"]["value"] is not None
    for pair in (("real", "few"), ("few", "real test"), ("real and few", "real test")):
        for name in ("accuracy", "auc"):
            figure = rows[pair][name]
            assert (figure["value"], figure["low"], figure["high"]) == (None, None, None)
            assert figure["note"] == "few: too few images of large 4; each class needs 10"


def test_class_that_the_real_images_lack_leaves_no_figures_at_all():
    rows = steering(labelled(60), labelled(60, 1), {"other": labelled(60, 2)}, ("small", "large", "huge"))
    assert {row["accuracy"]["value"] for row in rows.values()} == {None}
    assert "real: too few images of huge 0" in rows["real", "other"]["accuracy"]["note"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ("all",)}, "only between two or more"),
        ({"seeds": ()}, "seeds are"),
        ({"seeds": (1, 1)}, "seeds are"),
        ({"generated": {"real": labelled(20)}}, "use another name"),
        ({"generated": {"rgb": labelled(20, channels=3)}}, "'real': 1, 'real test': 1, 'rgb': 3"),
        (
            {"generated": {"none": LabelledImages(torch.zeros(0, 1, 32, 32), torch.zeros(0).long())}},
            "none: there are no",
        ),
        ({"test": LabelledImages(torch.zeros(2, 1, 32, 32), torch.tensor([0, 2]))}, "real test: labels lie in 0..2"),
    ],
)
def test_sets_that_say_nothing_are_refused(changes, message):
    sets = {"train": labelled(20), "test": labelled(20), "generated": {}} | changes
    with pytest.raises(ValueError, match=message):
        steering(**sets)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_balanced_accuracy_agrees_with_torchmetrics_and_scikit_learn(num_classes):
    probabilities, labels = drawn_scores(150, num_classes)
    value = balanced_accuracies(probabilities, labels, torch.ones(1, 150).double()).item()
    assert value == pytest.approx(balanced_accuracy_score(labels, probabilities.argmax(dim=1)))
    expected = multiclass_accuracy(probabilities.argmax(dim=1), labels, num_classes, average="macro")
    assert value == pytest.approx(float(expected), rel=1e-6)


def test_area_of_two_classes_agrees_with_torchmetrics():
    probabilities, labels = drawn_scores(150, 2)
    value = areas_under_curve(probabilities, labels, torch.ones(1, 150).double()).item()
    assert value == pytest.approx(float(binary_auroc(probabilities[:, 1], labels)), rel=1e-6)


def test_area_of_four_classes_agrees_with_torchmetrics_and_scikit_learn():
    probabilities, labels = drawn_scores(150, 4)
    value = areas_under_curve(probabilities, labels, torch.ones(1, 150).double()).item()
    assert value == pytest.approx(float(multiclass_auroc(probabilities, labels, 4, average="macro")), rel=1e-6)
    assert value == pytest.approx(roc_auc_score(labels, probabilities, multi_class="ovr"))


@pytest.mark.parametrize("measure", [balanced_accuracies, areas_under_curve])
def test_weights_count_images_as_often_as_they_say(measure):
    probabilities, labels = drawn_scores(60, 3)
    weights = torch.randint(3, (4, 60), generator=torch.Generator().manual_seed(0)).double()
    expected = []
    for row in weights:
        often = torch.arange(60).repeat_interleave(row.long())
        expected.append(measure(probabilities[often], labels[often], torch.ones(1, len(often)).double()))
    torch.testing.assert_close(measure(probabilities, labels, weights), torch.cat(expected))


def test_auc_of_a_perfect_classifier_has_the_interval_of_as_many_right_answers():
    labels = torch.arange(20) % 2
    _, area = steering_figures([torch.nn.functional.one_hot(labels, 2).double()], labels, replicates=100)
    assert (area.value, area.high) == (1.0, 1.0)
    # quantile^2 = 3.94 of Student's t with 99 degrees of freedom
    assert area.low == pytest.approx(20 / (20 + 3.937), abs=1e-3)


def test_interval_of_an_auc_near_one_holds_its_mean_over_other_test_images():
    generator, labels, area = torch.Generator().manual_seed(0), (torch.arange(100) >= 10).long(), 0.95
    distance = 2 * torch.special.erfinv(torch.tensor(2 * area - 1))  # of two unit Gaussians with this AUC
    draws = [(torch.randn(100, generator=generator) + distance * labels).sigmoid().double() for _ in range(150)]
    figures = [
        steering_figures([torch.stack([1 - draw, draw], dim=1)], labels, replicates=100, seed=seed)[1]
        for seed, draw in enumerate(draws)
    ]
    assert sum(figure.low <= area <= figure.high for figure in figures) / len(figures) > 0.9


def test_interval_of_one_training_is_that_of_the_binomial_distribution():
    labels = torch.arange(400) % 2
    right = torch.arange(400) < 320
    answers = torch.where(right, labels, 1 - labels)
    probabilities = torch.nn.functional.one_hot(answers, 2).double()
    accuracy, _ = steering_figures([probabilities], labels, replicates=2000)
    half = 1.96 * math.sqrt(0.8 * 0.2 / 400)
    assert accuracy.value == pytest.approx(0.8)
    assert (accuracy.low, accuracy.high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.006)
    assert "one training" in accuracy.note


def test_trainings_that_differ_widen_the_interval():
    labels = torch.arange(1000) % 2
    trainings = []
    for wrong in (100, 300, 500):
        answers = torch.where(torch.arange(1000) < wrong, 1 - labels, labels)
        trainings.append(torch.nn.functional.one_hot(answers, 2).double())
    accuracy, _ = steering_figures(trainings, labels)
    assert accuracy.value == pytest.approx(0.7)
    assert accuracy.low < 0.56
    assert accuracy.high > 0.84
    alike, _ = steering_figures([trainings[1]] * 3, labels)
    assert alike.value == pytest.approx(0.7)
    assert alike.low > 0.66


def test_interval_of_trainings_has_the_standard_error_of_their_mean():
    labels, trainings = torch.arange(4000) % 2, []
    for wrong in (1600, 2000, 2400):  # shares of 0.6, 0.5 and 0.4: a deviation of 0.1
        answers = torch.where(torch.arange(4000) < wrong, 1 - labels, labels)
        trainings.append(torch.nn.functional.one_hot(answers, 2).double())
    accuracy, _ = steering_figures(trainings, labels, replicates=400)
    assert accuracy.high - accuracy.low == pytest.approx(2 * 1.96 * 0.1 / 3**0.5, rel=0.08)


def test_no_error_at_all_says_how_large_it_may_still_be():
    labels = torch.arange(200) % 2
    accuracy, auc = steering_figures([torch.nn.functional.one_hot(labels, 2).double()] * 2, labels)
    assert accuracy.value == auc.value == 1
    for figure in (accuracy, auc):
        assert (figure.low, figure.high) == (pytest.approx(200 / (200 + 1.962**2), abs=1e-4), 1)


def test_few_replicates_give_an_interval_around_the_value_or_none():
    probabilities, labels = drawn_scores(50, 2)
    for figure in steering_figures([probabilities], labels, replicates=1):
        assert (figure.low, figure.high) == (None, None)
    for figure in steering_figures([probabilities], labels, replicates=2):
        assert 0 <= figure.low <= figure.value <= figure.high <= 1


def test_intervals_can_be_left_out():
    probabilities, labels = drawn_scores(50, 2)
    accuracy, auc = steering_figures([probabilities], labels, replicates=0)
    assert (accuracy.low, auc.low) == (None, None)


def auc(value, low=None, high=None, note=""):
    return {"value": value, "low": low, "high": high, "note": note}


@pytest.mark.parametrize(
    ("judge", "area", "answer", "why"),
    [
        (auc(0.9, 0.8, 0.95), auc(0.85, 0.8, 0.9), "yes", "AUC 0.85 [0.80 to 0.90] on generated images, 0.90"),
        (auc(0.9, 0.8, 0.95), auc(0.74, 0.7, 0.8), "partly", "0.74"),
        (auc(0.9, 0.8, 0.95), auc(0.52, 0.45, 0.6), "no", "0.52"),
        (auc(0.65, 0.55, 0.7), auc(0.9, 0.8, 0.95), "unanswerable", "itself is near guessing on real images, AUC 0.65"),
        (auc(1.0), auc(1.0), "yes", "AUC 1.00 on generated images, 1.00 on real ones"),
        (auc(0.9, 0.8, 0.95), auc(None, note="too few images"), "unanswerable", "too few images"),
        (auc(None, note="real: too few"), auc(0.9), "unanswerable", "real: too few"),
    ],
)
def test_answer_follows_the_rule(judge, area, answer, why):
    rows = [
        {"trained_on": "real", "tested_on": "real test", "auc": judge},
        {"trained_on": "real", "tested_on": "GAN", "auc": area},
        {"trained_on": "GAN", "tested_on": "real test", "auc": auc(0.1)},
    ]
    [(name, found)] = steering_answers(rows).items()
    assert (name, found["answer"]) == ("GAN", answer)
    assert why in found["why"]
