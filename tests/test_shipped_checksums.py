"""Checksums of the weights in a bundle that is given to others."""

import hashlib
import json
import shutil
import zipfile

import pytest
from tiny_models import copy_of_chest_bundle, save, tiny, tool_named
from torch import nn

from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.weights.model_info import read_model_info, write_model_info
from medfusion_monai.weights.state_dict import load_weights, save_safetensors, save_weights


@pytest.fixture(scope="module")
def tool():
    """The module ``tools/build_bundles.py``."""
    return tool_named("build_bundles")


@pytest.fixture
def bundle(tmp_path):
    """A copy of the chest bundle with weights in both formats."""
    folder, network = copy_of_chest_bundle(tmp_path), tiny()
    save(network, folder / "models" / "model.pt")
    save_safetensors(network, folder / "models" / "model.safetensors")
    return folder


@pytest.fixture
def unzipped(tool, bundle, tmp_path):
    """The bundle as a user has it, from its zip."""
    package, *_ = tool.build_zip(tool.parts_of(bundle), {}, tmp_path, None)
    with zipfile.ZipFile(package) as archive:
        archive.extractall(tmp_path / "here")
    return tmp_path / "here" / "medfusion_cxr"


def test_zip_lists_the_checksums_of_all_its_weights(unzipped):
    lines = (unzipped / "models" / "checksums.sha256").read_text().splitlines()
    names = ["model.json", "model.pt", "model.safetensors"]
    digests = [hashlib.sha256((unzipped / "models" / name).read_bytes()).hexdigest() for name in names]
    assert lines == [f"{digest}  {name}" for digest, name in zip(digests, names, strict=True)]


def test_weights_outside_the_zip_are_listed_too(tool, bundle, tmp_path, monkeypatch):
    size = (bundle / "models" / "model.pt").stat().st_size
    monkeypatch.setattr(tool, "LARGE_BYTES", size - 1)
    package, copy = tool.build_zip(tool.parts_of(bundle), {}, tmp_path, "https://example.org")
    with zipfile.ZipFile(package) as archive:
        listed = archive.read("medfusion_cxr/models/checksums.sha256").decode()
    assert f"{hashlib.sha256(copy.read_bytes()).hexdigest()}  model.pt\n" in listed


def test_zip_without_weights_has_no_list(tool, bundle, tmp_path):
    (package,) = tool.build_zip(tool.parts_of(bundle, with_weights=False), {}, tmp_path, None)
    with zipfile.ZipFile(package) as archive:
        assert not any("models" in name for name in archive.namelist())


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_exchanged_weights_of_an_unzipped_bundle_are_refused(unzipped, name):
    load_weights(tiny(), unzipped / "models" / name)
    other = {"model.pt": "model.safetensors", "model.safetensors": "model.pt"}[name]
    shutil.copy(unzipped / "models" / other, unzipped / "models" / name)
    with pytest.raises(WeightsError, match=rf"{name} is damaged or was replaced"):
        load_weights(tiny(), unzipped / "models" / name)


def test_training_in_an_unzipped_bundle_is_not_refused_by_its_list(unzipped):
    save_weights(nn.Linear(2, 3), unzipped / "models" / "model.pt")
    write_model_info(unzipped / "models" / "model.pt", {"version": "2"})
    load_weights(nn.Linear(2, 3), unzipped / "models" / "model.pt")
    assert read_model_info(unzipped / "models" / "model.pt") == {"version": "2"}


def test_bundle_whose_weights_are_not_those_of_its_list_is_not_built(tool, unzipped, tmp_path, capsys):
    content = json.loads((unzipped / "models" / "model.json").read_text())
    (unzipped / "models" / "model.json").write_text(json.dumps(content | {"version": "3"}))
    assert tool.main(["--output", str(tmp_path / "out"), "--bundles", str(unzipped)]) == 2
    assert "model.json is damaged or was replaced" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
