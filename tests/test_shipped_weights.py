"""Weights in what is given to others: they are described, whole, and nothing of a run goes with them."""

import hashlib
import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from monai.bundle import run
from monai.bundle.scripts import download_large_files
from tiny_models import (
    ROOT,
    contents,
    copy_of_chest_bundle,
    info_of,
    save,
    small_wheel,
    tiny,
    tool_named,
    used_bundle,
)

from medfusion_monai.model import load
from medfusion_monai.runtime.errors import first_cause
from medfusion_monai.runtime.locks import leave_folders
from medfusion_monai.weights.state_dict import save_safetensors, save_weights

SCHEMA = Path(os.environ.get("MONAI_META_SCHEMA", ROOT / "../shared/reference/meta_schema_20240725.json"))


@pytest.fixture(scope="module")
def tool():
    """The module ``tools/build_bundles.py``."""
    os.environ.setdefault("MONAI_META_SCHEMA", str(SCHEMA))
    return tool_named("build_bundles")


@pytest.fixture
def bundle(tmp_path):
    """A copy of the chest bundle, without weights."""
    return copy_of_chest_bundle(tmp_path)


@pytest.fixture
def used(tmp_path):
    """The bundle with weights of classes, channels and a size of their own, and traces of a training."""
    return used_bundle(tmp_path)


@pytest.fixture
def weighty(bundle, tool, monkeypatch):
    """The bundle with weights that are too large for a zip."""
    monkeypatch.setattr(tool, "LARGE_BYTES", 100)
    save(tiny(), bundle / "models" / "model.pt")
    (bundle / "models" / ".model.pt.77").write_bytes(b"half-written")
    return bundle


def test_large_weights_need_an_address(weighty, tool, tmp_path, capsys):
    assert tool.main(["--output", str(tmp_path / "out"), "--bundles", str(weighty)]) == 2
    assert "model.pt: more than 25 MB" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def hosted(weighty, tool, tmp_path):
    """The unzipped bundle of large weights, whose address is a folder of this machine."""
    folder = tmp_path / "hosted"
    folder.mkdir()
    package, copy = tool.build_zip(tool.parts_of(weighty), {}, folder, folder.as_uri() + "/")
    with zipfile.ZipFile(package) as archive:
        assert "medfusion_cxr/models/model.json" in archive.namelist()
        assert "medfusion_cxr/models/model.pt" not in archive.namelist()
        archive.extractall(tmp_path / "here")
    (entry,) = yaml.safe_load((tmp_path / "here" / "medfusion_cxr" / "large_files.yml").read_text())["large_files"]
    assert entry["hash_val"] == hashlib.sha256((weighty / "models" / "model.pt").read_bytes()).hexdigest()
    assert entry["url"] == copy.as_uri()
    return tmp_path / "here" / "medfusion_cxr"


def infer(bundle, output_dir, **more):
    try:
        run(
            run_id="inference",
            config_file=str(bundle / "configs" / "inference.yaml"),
            output_dir=str(output_dir),
            num_samples=1,
            **more,
        )
    finally:  # as the end of its process would
        leave_folders()


def test_large_weights_lie_beside_the_zip_and_monai_fetches_them_from_their_address(hosted, weighty):
    download_large_files(bundle_path=str(hosted))
    assert (hosted / "models" / "model.pt").read_bytes() == (weighty / "models" / "model.pt").read_bytes()


def test_weights_that_are_not_fetched_are_asked_for_by_the_command_that_fetches_them(hosted, tmp_path):
    command = f"python -m monai.bundle download_large_files --bundle_path {hosted}"
    with pytest.raises(RuntimeError) as caught:
        infer(hosted, tmp_path / "samples")
    assert command in str(first_cause(caught.value))
    with pytest.raises(ValueError, match="download_large_files"):
        load(hosted)
    assert "python -m monai.bundle download_large_files --bundle_path medfusion_cxr" in readme_of(hosted)
    download_large_files(bundle_path=str(hosted))
    infer(hosted, tmp_path / "samples", label="cardiomegaly")
    assert len(list((tmp_path / "samples").glob("*.png"))) == 1


def readme_of(bundle):
    return (bundle / "docs" / "README.md").read_text()


def test_zip_speaks_of_the_weights_in_it(used, tool, tmp_path):
    folder = tool.build_folder(tool.parts_of(used), {}, tmp_path / "out")
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    assert metadata["label_classes"] == "0 normal, 1 lobar pneumonia"
    assert metadata["image_classes"] == "three channels, images in [0, 1], 32 x 48 pixels"
    assert metadata["pred_classes"] == "three channels, synthetic images in [0, 1], 32 x 48 pixels"
    assert "lobar pneumonia" in metadata["task"]
    for group in metadata["network_data_format"].values():
        (tensor,) = group.values()
        assert (tensor["num_channels"], tensor["spatial_shape"]) == (3, ["2*n", "2*n"])
        assert tensor["channel_def"] == {"0": "red", "1": "green", "2": "blue"}
    assert tool.faults_of(folder, tool.read_schema()) == []
    readme = readme_of(folder)
    assert "| 1 | lobar pneumonia | 50.0% |" in readme
    for words in ("32 x 48 pixels", "training images: 557", "steps of phase two | 1000", "sampler | ddim"):
        assert words in readme
    assert not any(words in readme for words in ("256", "cardiomegaly", "None are distributed"))


def test_what_a_bundle_says_of_weights_as_its_own_stays(bundle, tool):
    save(tiny(), bundle / "models" / "model.pt")
    before = json.loads((bundle / "configs" / "metadata.json").read_text())
    after = tool.parts_of(bundle).facts.metadata
    differing = {key for key in before if after[key] != before[key]}
    assert differing == {"image_classes", "pred_classes", "network_data_format"}
    assert after["image_classes"] == f"{before['image_classes']}, 16 x 24 pixels"


def test_bundle_without_weights_speaks_of_itself(bundle, tool, tmp_path):
    folder = tool.build_folder(tool.parts_of(bundle), {}, tmp_path / "out")
    assert (folder / "configs/metadata.json").read_bytes() == (bundle / "configs/metadata.json").read_bytes()
    own, given = readme_of(bundle).split("## Install"), readme_of(folder).split("## Install")
    assert given[0].partition("## Weights")[0] == own[0].partition("## Weights")[0]
    assert "None are distributed with this copy" in given[0]
    assert given[1].partition("## Use")[2] == own[1].partition("## Use")[2]
    assert "PYTHONPATH=medfusion_cxr" in given[1].partition("## Use")[0]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_building_from_what_was_built_gives_it_again(suffix, bundle, tool, tmp_path):
    network = tiny(["a", "b", "c"])
    if suffix == ".pt":
        save(network, bundle / "models" / "model.pt")
    else:
        save_safetensors(network, bundle / "models" / "model.safetensors", {"model": json.dumps(info_of(network))})
    first = tool.build_folder(tool.parts_of(bundle), {}, tmp_path / "first")
    second = tool.build_folder(tool.parts_of(first), {}, tmp_path / "second")
    assert contents(first) == contents(second)
    assert f"models/model{suffix}" in contents(second)
    state = load(second, "cpu").network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())


def test_json_configs_are_the_yaml_and_one_for_loading(bundle, tool, tmp_path):
    folder = tool.build_folder(tool.parts_of(bundle), {}, tmp_path / "out")
    inference, train = (
        json.loads((folder / "configs" / f"{name}.json").read_text()) for name in ("inference", "train")
    )
    assert "inference.yaml" in inference.pop("about")
    assert inference == yaml.safe_load((bundle / "configs" / "inference.yaml").read_text())
    assert "monai.bundle.load" in train["about"]
    assert train["untrained"] == inference["untrained"]


def test_folder_holds_all_weights_and_nothing_of_a_run(used, tool, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tool, "LARGE_BYTES", 100)
    monkeypatch.setattr(tool, "build_wheel", small_wheel)
    assert tool.main(["--output", str(tmp_path / "out"), "--bundles", str(used), "--folders"]) == 0
    written = contents(tmp_path / "out" / "medfusion_cxr")
    models = {name for name in written if name.startswith("models/")}
    assert models == {"models/checksums.sha256", "models/model.json", "models/model.pt"}
    assert {name.split("/")[0] for name in written} == {
        "configs", "docs", "LICENSE", "medfusion_monai", "models", "README.md", "requirements.txt"
    }  # fmt: skip
    assert not any(b"planted" in content for content in written.values())
    assert "no zip of medfusion_cxr: weights over 25 MB take --weights-url" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["medfusion_cxr", "package.whl"]


def test_folder_is_written_again_over_itself_alone(used, tool, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tool, "build_wheel", small_wheel)
    command = ["--output", str(tmp_path / "out"), "--bundles", str(used), "--folders"]
    assert tool.main(command) == 0
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "medfusion_cxr" / "README.md").write_text("of a push to a hub")
    assert tool.main(command) == 0
    assert contents(tmp_path / "out") == before
    (tmp_path / "out" / "medfusion_cxr" / "runs").mkdir()
    (tmp_path / "out" / "medfusion_cxr" / "runs" / "0.png").write_text("of a run")
    assert tool.main(command) == 2
    assert "0.png, which an upload of the folder would include" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "license_id"),
    [([], "unknown"), (["--license", "cc-by-4.0"], "cc-by-4.0"), (["--without-weights"], "apache-2.0")],
)
def test_folder_has_a_card_that_the_hub_reads(more, license_id, used, tool, monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(tool, "build_wheel", small_wheel)
    assert tool.main(["--output", str(tmp_path / "out"), "--bundles", str(used), "--folders", *more]) == 0
    folder = tmp_path / "out" / "medfusion_cxr"
    card = hub.ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.library_name) == (license_id, "monai")
    assert card.text.strip() == (folder / "docs" / "README.md").read_text().strip()


def test_license_that_the_hub_does_not_know_is_refused(used, tool, tmp_path, capsys):
    given = ["--output", str(tmp_path / "out"), "--bundles", str(used), "--folders", "--license", "CC BY 4.0"]
    assert tool.main(given) == 2
    assert "such as cc-by-4.0, cc0-1.0, apache-2.0 or other, received 'CC BY 4.0'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bundle_is_not_written_over_by_its_own_folder(used, tool, monkeypatch, capsys):
    monkeypatch.setattr(tool, "build_wheel", small_wheel)
    before = contents(used)
    assert tool.main(["--output", str(used.parent), "--bundles", str(used), "--folders"]) == 2
    assert "is the bundle itself" in capsys.readouterr().err
    assert contents(used) == before


def test_phase_one_alone_goes_out_undescribed(bundle, tool, tmp_path):
    save_weights(tiny().autoencoder, bundle / "models" / "autoencoder.pt")
    folder = tool.build_folder(tool.parts_of(bundle), {}, tmp_path / "out")
    assert {path.name for path in (folder / "models").iterdir()} == {"autoencoder.pt", "checksums.sha256"}
    assert "None are distributed" in readme_of(folder)


def test_zip_can_be_opened_as_it_is(used, tool, tmp_path):
    (package,) = tool.build_zip(tool.parts_of(used), {}, tmp_path, None)
    model = load(package, "cpu")
    assert model.class_names == ["normal", "lobar pneumonia"]
    assert model.sample("normal").shape == (1, 3, 32, 48)


def test_two_files_of_different_weights_are_refused(bundle, tool):
    save(tiny(), bundle / "models" / "model.pt")
    other = tiny()
    other.autoencoder.conv_out.weight.data += 1.0
    save_safetensors(other, bundle / "models" / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors beside it contain different weights: keep only the one"):
        tool.parts_of(bundle)


def test_weights_that_nothing_describes_are_not_shared(bundle, tool, tmp_path, capsys):
    save_weights(tiny(), bundle / "models" / "model.pt")
    assert tool.main(["--output", str(tmp_path / "out"), "--bundles", str(bundle)]) == 2
    assert "model.json is missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
