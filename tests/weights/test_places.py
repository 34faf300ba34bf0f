import logging

import pytest

from medfusion_monai.weights.places import find_weights


@pytest.fixture
def bundle(tmp_path):
    """Make a bundle with starter weights alone."""
    starter = tmp_path / "models" / "starter" / "model.safetensors"
    starter.parent.mkdir(parents=True)
    starter.touch()
    return tmp_path


@pytest.mark.parametrize("inner", [".", "models", "models/starter"])
def test_starter_weights_are_found_from_the_bundle_and_from_its_folders(bundle, inner):
    assert find_weights(bundle / inner) == bundle / "models" / "starter" / "model.safetensors"


def test_the_log_says_that_starter_weights_are_used(bundle, caplog):
    with caplog.at_level(logging.INFO):
        found = find_weights(bundle)
    assert f"the starter weights {found} are used" in caplog.text


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_weights_of_a_user_precede_starter_weights(bundle, caplog, name):
    (bundle / "models" / name).touch()
    with caplog.at_level(logging.INFO):
        assert find_weights(bundle) == find_weights(bundle / "models") == bundle / "models" / name
    assert not caplog.records


def test_without_weights_the_place_of_a_training_is_named(tmp_path):
    (tmp_path / "models" / "starter").mkdir(parents=True)
    assert find_weights(tmp_path) == tmp_path / "models" / "model.pt"
