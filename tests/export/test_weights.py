import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from medfusion_monai.cli import main
from medfusion_monai.configs import read_configs
from medfusion_monai.export import export_weights
from medfusion_monai.networks import WeightsError
from medfusion_monai.weights.model_info import read_model_info, write_model_info
from medfusion_monai.weights.state_dict import file_sha256, load_weights

BUNDLE = Path(__file__).parents[2] / "bundles" / "medfusion_cxr"
NAMES = ["README.md", "checksums.sha256", "model.json", "model.safetensors"]
PLACE, PATIENT = "planted_hospital_disk", "planted-id-4711"


@pytest.fixture(scope="module")
def trained(model_file, parser, tmp_path_factory):
    """The tiny model in a folder whose name must not get out, with what it was trained with and a stray entry."""
    path = Path(shutil.copy(model_file, tmp_path_factory.mktemp(PLACE) / "model.pt"))
    info = parser.get_parsed_content("model_settings")
    write_model_info(path, {**info, "class_shares": [0.75, 0.25], "version": "0.0.9", "planted_key": [PATIENT]})
    return path


@pytest.fixture(scope="module")
def written(trained, settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    export_weights(BUNDLE, trained, folder, ["demo.yaml"], {**settings, "output_dir": PLACE})
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_folder_holds_weights_settings_card_and_checksums(written):
    assert sorted(contents(written)) == NAMES


def test_weights_are_those_of_the_model_bit_for_bit(written, network):
    with safe_open(str(written / "model.safetensors"), "pt") as file:
        assert sorted(file.keys()) == sorted(network.state_dict())
        for name, value in network.state_dict().items():
            assert torch.equal(file.get_tensor(name), value), name


def test_header_says_what_the_weights_are(written):
    with safe_open(str(written / "model.safetensors"), "pt") as file:
        header = file.metadata()
    metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
    assert (header["format"], header["bundle"], header["bundle_version"]) == (
        "pt",
        metadata["name"],
        metadata["version"],
    )
    assert json.loads(header["model"]) == read_model_info(written / "model.safetensors")
    sizes = json.loads(header["sizes"])
    assert (sizes["autoencoder_channels"], sizes["unet_channels"]) == ([8, 16], [16, 16, 32])


def test_inference_takes_the_file_with_the_options_of_the_card(written, network, settings):
    options = {key: value for key, value in settings.items() if f"--{key} " in (written / "README.md").read_text()}
    assert {"image_size", "autoencoder_channels", "unet_channels", "unet_norm_groups"} <= options.keys()
    parser = read_configs(BUNDLE, ["inference.yaml"], {**options, "model_file": str(written / "model.safetensors")})
    parser.get_parsed_content("inference#0")
    loaded = parser.get_parsed_content("network_def").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in network.state_dict().items())


def test_settings_of_the_training_are_kept_and_nothing_else(written, parser):
    info = read_model_info(written / "model.safetensors")
    expected = parser.get_parsed_content("model_settings")
    assert info == json.loads(json.dumps({**expected, "class_shares": [0.75, 0.25], "version": "0.0.9"}))


def test_weights_that_were_changed_afterwards_are_refused(written, network, tmp_path):
    folder = Path(shutil.copytree(written, tmp_path / "sent"))
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.safetensors is damaged or was exchanged"):
        load_weights(network, folder / "model.safetensors")


def test_checksums_hold_and_leave_the_card_to_be_completed(written):
    listed = dict(line.split("  ")[::-1] for line in (written / "checksums.sha256").read_text().splitlines())
    assert listed == {name: file_sha256(written / name) for name in ("model.json", "model.safetensors")}


def test_same_model_gives_the_same_bytes(written, trained, settings, tmp_path):
    export_weights(BUNDLE, trained, tmp_path, ["demo.yaml"], settings)
    assert contents(tmp_path) == contents(written)


def test_exporting_an_export_gives_it_again(written, settings, tmp_path):
    export_weights(BUNDLE, written / "model.safetensors", tmp_path, ["demo.yaml"], settings)
    assert contents(tmp_path) == contents(written)


@pytest.mark.parametrize("planted", [PLACE, PATIENT, "planted_key"])
def test_nothing_that_is_written_names_a_place_or_a_patient(written, planted):
    assert [name for name, content in contents(written).items() if planted.encode() in content] == []


def test_export_over_an_older_one_is_whole(written, trained, settings, tmp_path):
    folder = Path(shutil.copytree(written, tmp_path / "old"))
    (folder / "checksums.sha256").write_text(f"{'0' * 64}  model.safetensors\n")
    export_weights(BUNDLE, trained, folder, ["demo.yaml"], settings)
    assert contents(folder) == contents(written)


def test_export_killed_between_its_files_leaves_no_list_that_refuses_them(
    written, trained, settings, network, tmp_path, monkeypatch
):
    folder = Path(shutil.copytree(written, tmp_path / "old"))
    (folder / "checksums.sha256").write_text(f"{'0' * 64}  model.safetensors\n")
    move = os.replace

    def killed(source, target):
        if Path(target) == folder / "model.json":
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        export_weights(BUNDLE, trained, folder, ["demo.yaml"], settings)
    load_weights(network, folder / "model.safetensors")


@pytest.fixture
def export(trained, settings, tmp_path):
    """Runs `medfusion export --format safetensors` with the tiny networks."""
    places = {"bundle": BUNDLE, "model-file": trained, "output": tmp_path / "out"}
    given = [part for name, place in places.items() for part in (f"--{name}", str(place))]
    given += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]

    def run(*more):
        return main(["export", *given, "--format", "safetensors", *more])

    return run


def test_program_prints_the_files(export, tmp_path, capsys):
    assert export() == 0
    printed = capsys.readouterr().out.splitlines()
    assert sorted(printed) == [str(tmp_path / "out" / name) for name in sorted(NAMES)]
    assert all(Path(line).is_file() for line in printed)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum")
def test_command_of_the_card_checks_the_files(export, tmp_path):
    assert export() == 0
    (command,) = [line for line in (tmp_path / "out" / "README.md").read_text().splitlines() if "sha256sum" in line]
    command = command.replace("FOLDER", str(tmp_path / "out"))
    assert subprocess.run(command, shell=True, capture_output=True, check=False).returncode == 0


def write(folder, name, found):
    path = folder / name
    path.write_text(found if isinstance(found, str) else json.dumps(found))
    return str(path)


@pytest.mark.parametrize("option", ["--report", "--audit"])
@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"repeat": {"checksums": {"model.pt": "0" * 64}}}, "is of other weights (SHA-256 000000000000...)"),
        ("{", "cannot be read as JSON"),
        ([1], "holds no JSON object"),
        (None, "cannot be read as JSON"),
    ],
)
def test_report_that_is_not_of_these_weights_is_refused(option, found, words, export, tmp_path, capsys):
    path = str(tmp_path / "none.json") if found is None else write(tmp_path, "report.json", found)
    assert export(option, path) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_report_of_these_weights_is_in_the_card(export, trained, tmp_path):
    report = {
        "repeat": {"checksums": {"model.pt": file_sha256(trained)}},
        "reconstructions": [{"name": "Medfusion", "split": "test", "count": 9, "ms_ssim": {"mean": 0.12345}}],
    }
    assert export("--report", write(tmp_path, "report.json", report)) == 0
    assert "0.123" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--set", "unet_channels=[16, 16, 64]"], "do not fit this network"),
        (["--model-file", "none.pt"], "do not exist"),
        (["--format", "onnx", "--report", "x"], "--report and --audit are for the card of safetensors"),
        (["--format", "pickle"], "onnx, torchscript, safetensors, received 'pickle'"),
    ],
)
def test_export_that_cannot_be_made_is_refused_with_what_to_do(more, words, export, capsys, tmp_path):
    assert export(*more) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bundle_without_metadata_is_refused(trained, settings, tmp_path):
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    shutil.copy(BUNDLE / "configs" / "inference.yaml", tmp_path / "bundle" / "configs")
    with pytest.raises(ValueError, match=r"metadata\.json cannot be read"):
        export_weights(tmp_path / "bundle", trained, tmp_path / "out", (), settings)
