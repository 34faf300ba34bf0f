"""Reading configs, and the references in them."""

import pytest

from medfusion_monai.bundle.parser import check_references, read_files

CONFIG = """
bundle_root: $1 / 0
steps: 3
train: {trainer: {max_epochs: '@steps'}, length: '$@steps + len(@train#trainer)'}
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "configs").mkdir()
    path = tmp_path / "configs" / "train.yaml"
    path.write_text(CONFIG)
    return path


def test_later_files_and_overrides_win(config):
    overlay = config.with_name("demo.yaml")
    overlay.write_text("steps: 4\n")
    assert read_files([str(config), str(overlay)], {}).get_parsed_content("train#length") == 5
    parser = read_files([str(config), str(overlay)], {"train#trainer#max_epochs": 9})
    assert parser.get_parsed_content("train#trainer#max_epochs") == 9


def test_bundle_is_the_folder_above_configs(config, tmp_path):
    assert read_files([str(config)], {}).get_parsed_content("bundle_root") == str(tmp_path)
    assert read_files([str(config)], {"bundle_root": "/elsewhere"}).get_parsed_content("bundle_root") == "/elsewhere"


def test_unknown_override_is_refused_with_the_nearest_key(config):
    with pytest.raises(ValueError, match=r"stepz \(near: steps\): not a key of this config"):
        read_files([str(config)], {"stepz": 1})


def test_new_keyword_of_a_part_is_taken(config):
    parser = read_files([str(config)], {"train#trainer#device": "cpu"})
    assert parser.get_parsed_content("train#trainer") == {"max_epochs": 3, "device": "cpu"}


def test_file_that_is_missing_or_no_yaml_is_named(config):
    with pytest.raises(ValueError, match=r"nowhere\.yaml: no such file"):
        read_files([str(config.with_name("nowhere.yaml"))], {})
    config.write_text("a: [1")
    with pytest.raises(ValueError, match=r"train\.yaml: cannot be read as configs"):
        read_files([str(config)], {})


def test_references_of_a_good_config_are_counted(config):
    assert check_references(read_files([str(config)], {})) == "3 references"


def test_reference_to_no_key_is_told_with_its_place_and_the_nearest(config):
    parser = read_files([str(config)], {"train#trainer#max_epochs": "@stepz", "steps": "$@train#lenght"})
    with pytest.raises(ValueError, match="no such key") as caught:
        check_references(parser)
    assert "train::trainer::max_epochs refers to @stepz (near: steps)" in str(caught.value)
    assert "steps refers to @train::lenght (near: train::length" in str(caught.value)
