"""The commands by which MONAI's model zoo checks and converts a bundle, and by which MONAI loads one."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from monai.bundle import ckpt_export, load, verify_metadata, verify_net_in_out
from tiny_models import save, tiny, tool_named

ROOT = Path(__file__).parents[2]
SCHEMA = Path(os.environ.get("MONAI_META_SCHEMA", ROOT / "../shared/reference/meta_schema_20240725.json"))
CLASSES = ["none", "mild", "severe"]

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")


@pytest.fixture(params=["medfusion_cxr", "medfusion_fundus", "medfusion_histo"])
def source(request):
    """Each of the bundles."""
    return ROOT / "bundles" / request.param


@pytest.fixture(scope="module")
def tool():
    """The module ``tools/build_bundles.py``."""
    return tool_named("build_bundles")


@pytest.fixture
def unweighted(source, tmp_path):
    """A copy of a bundle, without weights."""
    for name in ("configs", "docs"):
        shutil.copytree(source / name, tmp_path / source.name / name)
    shutil.copy(source / "LICENSE", tmp_path / source.name)
    return tmp_path / source.name


@pytest.fixture
def given(unweighted, tool, tmp_path):
    """The bundle as others get it, with weights of another size, other classes and other channels than its own."""
    channels = 3 if "cxr" in unweighted.name else 1
    save(tiny(CLASSES, channels, image_size=(16, 24)), unweighted / "models" / "model.pt")
    return tool.build_folder(tool.parts_of(unweighted), {}, tmp_path / "given")


def configs(bundle, *names):
    return [str(bundle / "configs" / name) for name in names]


@pytest.mark.skipif(not SCHEMA.is_file(), reason=f"no {SCHEMA}; set MONAI_META_SCHEMA")
@pytest.mark.parametrize("kind", ["unweighted", "given"])
def test_metadata_is_verified(kind, source, request, caplog):
    bundle = request.getfixturevalue(kind)
    caplog.set_level(logging.INFO)
    (file,) = configs(bundle, "metadata.json")
    verify_metadata(meta_file=file, filepath=str(SCHEMA), hash_val="06954cad2cc5d3784e72077ac76f0fc8")
    assert "metadata is verified with no error" in caplog.text


@pytest.mark.parametrize(
    ("kind", "sides"),
    [("given", 8), ("unweighted", 1), pytest.param("unweighted", 32, marks=pytest.mark.slow)],
    ids=["weights", "no weights", "no weights, full size"],
)
def test_network_takes_and_gives_what_the_metadata_says(kind, sides, source, request, caplog):
    bundle = request.getfixturevalue(kind)
    caplog.set_level(logging.INFO)
    meta_file, config_file = configs(bundle, "metadata.json", "inference.yaml")
    verify_net_in_out(
        "network_def",
        meta_file=meta_file,
        config_file=config_file,
        device="cpu",
        n=sides,
        bundle_root=str(bundle),
    )
    assert "data shape of network is verified with no error" in caplog.text


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of checks of shapes, which the test varies
@pytest.mark.parametrize(
    ("config", "how"),
    [
        ("inference.yaml", {}),
        ("inference.json", {}),
        ("inference.yaml", {"use_trace": True}),
        ("inference.yaml", {"use_trace": True, "input_shape": "of an image"}),
    ],
    ids=["by default", "by default, of JSON", "trace", "trace of an image"],
)
def test_exported_network_reconstructs_as_pytorch_does(config, how, given, tmp_path):
    meta_file, config_file = configs(given, "metadata.json", config)
    network = tiny(CLASSES, 3 if "cxr" in given.name else 1)
    channels, source = network.autoencoder.in_channels, torch.Generator().manual_seed(0)
    if "input_shape" in how:
        how = {**how, "input_shape": [1, channels, 16, 24]}
    ckpt_export(
        "network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(given / "models" / "model.pt"),
        meta_file=meta_file,
        config_file=config_file,
        bundle_root=str(given),
        **how,
    )
    extra = {"inference.json": "", "metadata.json": ""}
    exported = torch.jit.load(tmp_path / "model.ts", _extra_files=extra)
    image = torch.rand(3, channels, 48, 72, generator=source) * 2 - 1  # another batch and size than was traced
    with torch.no_grad():
        expected = network(image)
        assert expected.std() > 0.01
        assert (exported(image) - expected).abs().max() < 1e-4
    assert json.loads(extra["inference.json"])["network_def"] == "$@model.network"
    assert json.loads(extra["metadata.json"])["label_classes"] == "0 none, 1 mild, 2 severe"
    if not how:  # a script of the autoencoder, which is what runs; a trace carries the UNet along
        assert (tmp_path / "model.ts").stat().st_size < (given / "models" / "model.pt").stat().st_size / 2


@pytest.mark.parametrize("workflow_type", [None, "train", "inference"])
def test_monai_loads_a_network_with_the_weights_and_leaves_nothing_behind(workflow_type, given, monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before = sorted(tmp_path.rglob("*"))
    kind = {} if workflow_type is None else {"workflow_type": workflow_type}
    network = load(given.name, bundle_dir=str(given.parent), device="cpu", **kind)
    assert sorted(tmp_path.rglob("*")) == before
    expected = tiny(CLASSES, 3 if "cxr" in given.name else 1).state_dict()
    assert network.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    assert network.class_names == CLASSES
