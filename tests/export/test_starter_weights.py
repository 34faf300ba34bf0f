"""Weights that the project ships in ``models/starter`` of a bundle."""

import shutil

import pytest
from tiny_models import copy_of_chest_bundle

from medfusion_monai.export.bundle import parts_of
from medfusion_monai.export.metadata import metadata_beside
from medfusion_monai.export.safetensors_folder import export_weights


@pytest.fixture
def bundle(tmp_path, model_file):
    """Make a copy of the chest bundle with tiny starter weights."""
    folder = copy_of_chest_bundle(tmp_path)
    export_weights(model_file, folder / "models" / "starter", folder)
    return folder


def test_starter_weights_are_shared_where_there_are_no_others(bundle):
    parts = parts_of(bundle)
    assert parts.weights == [bundle / "models" / "starter" / "model.safetensors"]
    assert parts.facts is not None
    assert parts_of(bundle, with_weights=False).weights == []


def test_weights_of_a_training_are_shared_in_their_place(bundle, model_file, tmp_path):
    export_weights(model_file, tmp_path / "shared", bundle)
    shutil.copytree(tmp_path / "shared", bundle / "models", dirs_exist_ok=True)
    assert parts_of(bundle).weights == [bundle / "models" / "model.safetensors"]


def test_they_belong_to_the_bundle_around_them(bundle):
    starter = bundle / "models" / "starter"
    export_weights(starter, starter)  # in place, without naming the bundle
    assert metadata_beside(starter / "model.safetensors")["name"] == "Medfusion chest X-ray"
    assert "chest X-ray" in (starter / "README.md").read_text()
