import pytest

from medfusion_monai.apps.monailabel.client_options import read_options

TABLE = {"label": ["other", "a", "b"], "strength": 0.5, "seed": 7, "save_image": False}


def test_left_out_and_empty_cells_have_their_defaults():
    expected = {"label": "other", "strength": 0.5, "seed": 7, "save_image": False}
    assert read_options({}, TABLE) == expected
    assert read_options({"label": "", "strength": "", "seed": None, "save_image": ""}, TABLE) == expected


def test_text_of_cells_is_read_by_the_type_of_the_default():
    given = {"label": "b", "strength": "0.25", "seed": "3", "save_image": "true"}
    assert read_options(given, TABLE) == {"label": "b", "strength": 0.25, "seed": 3, "save_image": True}


def test_choice_may_come_as_the_whole_list_with_the_chosen_one_first():
    assert read_options({"label": ["b", "other", "a"]}, TABLE)["label"] == "b"


def test_entries_of_the_client_itself_are_ignored():
    assert set(read_options({"result_extension": ".nrrd", "client_id": "x"}, TABLE)) == set(TABLE)


def test_large_seed_is_kept_exactly():
    assert read_options({"seed": "9007199254740993"}, TABLE)["seed"] == 9007199254740993


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"label": "c"}, "label 'c' is unknown: choose one of other, a, b"),
        ({"strength": "much"}, "strength must be a number, received 'much'"),
        ({"strength": "nan"}, "strength must be a number"),
        ({"strength": True}, "strength must be a number"),
        ({"seed": "1.5"}, "seed must be a whole number, received '1.5'"),
        ({"save_image": "perhaps"}, "save_image must be true or false"),
    ],
)
def test_value_of_another_type_is_named(given, words):
    with pytest.raises(ValueError, match=words):
        read_options(given, TABLE)
