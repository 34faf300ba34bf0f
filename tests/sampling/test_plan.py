"""The plan of an inference run: files, labels and seeds."""

import pytest

from medfusion_monai.sampling.plan import parse_label, sampling_plan

CLASSES = ["normal", "enlarged"]


def test_classes_that_differ_only_in_signs_have_their_own_files():
    files = [item["file"] for item in sampling_plan(["ER+", "ER-", "er-", "1_ER"], num_samples=3)]
    assert len({file.lower() for file in files}) == 12


def test_image_keeps_its_seed_in_a_larger_plan():
    small, large = (sampling_plan(CLASSES, num_samples=count) for count in (2, 5))
    assert [item for item in large if item in small] == small


def test_counts_belong_to_the_labels_as_they_are_given():
    plan = sampling_plan(CLASSES, label=["enlarged", 0], num_samples=[1, 2])
    assert [item["label"] for item in plan] == [1, 0, 0]


def test_given_seeds_are_taken_for_every_label():
    assert [item["seed"] for item in sampling_plan(CLASSES, image_seeds=[8, 5])] == [8, 5, 8, 5]


@pytest.mark.parametrize("count", [2.5, "ten", True, None, 0, [1, 2.0], []])
def test_count_that_is_not_a_whole_number_is_refused(count):
    with pytest.raises(ValueError, match="num_samples"):
        sampling_plan(CLASSES, num_samples=count)


@pytest.mark.parametrize("label", [1.0, [1.0], True, "2", -1, [None], {}])
def test_label_that_is_not_a_class_is_refused(label):
    with pytest.raises(ValueError, match=r"label .* is not a class of this bundle.*1 enlarged"):
        sampling_plan(CLASSES, label=label)


@pytest.mark.parametrize("seeds", [5, [], [-3], [1.5], "12", [True], [2**63]])
def test_seeds_that_are_not_a_list_of_whole_numbers_are_refused(seeds):
    with pytest.raises(ValueError, match="image_seeds must be a list"):
        sampling_plan(CLASSES, image_seeds=seeds)


@pytest.mark.parametrize("argument", ["label", "image_seeds"])
@pytest.mark.parametrize("text", ["null", "none", "None"])
def test_null_as_text_is_refused_as_any_other_text(argument, text):
    with pytest.raises(ValueError, match=rf"{argument}.*'{text}'"):
        sampling_plan(CLASSES, **{argument: text})


def test_class_may_be_called_none():
    assert parse_label("none", ["none", "some"], "negative_label") == 0


def counts_of(plan):
    return [sum(item["label"] == label for item in plan) for label in range(3)]


def test_real_shares_make_up_the_total():
    plan = sampling_plan(["a", "b", "c"], num_samples=100, class_shares="real", real_shares=[0.9, 0.096, 0.004])
    assert counts_of(plan) == [90, 10, 0]


def test_real_shares_of_some_labels_are_taken_among_these():
    plan = sampling_plan(
        ["a", "b", "c"], label=[2, "b"], num_samples=9, class_shares="real", real_shares=[0.7, 0.1, 0.2]
    )
    assert counts_of(plan) == [0, 3, 6]


def test_shares_belong_to_the_labels_as_they_are_given():
    assert counts_of(sampling_plan(CLASSES, label=[1, 0], num_samples=100, class_shares=[0.97, 0.03])) == [3, 97, 0]


def test_image_keeps_its_seed_with_shares():
    plan = sampling_plan(CLASSES, num_samples=10, class_shares=[0.8, 0.2])
    assert all(item in sampling_plan(CLASSES, num_samples=8) for item in plan)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_shares": "equal"}, "must be real, a list of 2 shares .* received 'equal'"),
        ({"class_shares": [0.5, 0.5], "label": 1}, "a list of 1 shares"),
        ({"class_shares": "real"}, "needs the shares of the labels .* give a list"),
        ({"class_shares": "real", "label": 1, "real_shares": [1.0, 0.0]}, "needs the shares"),
        ({"class_shares": [0.5, 0.5], "num_samples": [3, 4]}, "num_samples is the total number of images"),
        ({"class_shares": [0.5, 0.5], "num_samples": 0}, "num_samples is the total number of images"),
        ({"class_shares": [0.5, 0.5], "image_seeds": [4]}, "image_seeds .* give only one of them"),
        ({"class_shares": "null"}, "received 'null'"),
    ],
)
def test_shares_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sampling_plan(CLASSES, **arguments)


@pytest.mark.parametrize("name", ["a" * 300, "ö" * 200, "心" * 200])
def test_long_class_names_give_files_that_can_be_written(name, tmp_path):
    for item in sampling_plan([name, f"{name}b"], num_samples=1):
        (tmp_path / item["file"]).touch()
    assert len(list(tmp_path.iterdir())) == 2
