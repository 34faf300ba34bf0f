import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from monai.bundle import run
from safetensors import safe_open

from medfusion_monai.cli import main
from medfusion_monai.diffusion.inferer import SETTINGS, LatentDiffusionSampler
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.export.safetensors_folder import export_weights
from medfusion_monai.model import load
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.runtime.locks import leave_folders
from medfusion_monai.weights.model_info import read_model_info, write_model_info
from medfusion_monai.weights.state_dict import load_weights

BUNDLE = Path(__file__).parents[2] / "bundles" / "medfusion_cxr"
NAMES = ["README.md", "checksums.sha256", "model.json", "model.safetensors"]
PLACE, PATIENT = "planted_hospital_disk", "planted-id-4711"


def plant(info):
    """Put an entry that nobody knows everywhere where one can be, but in networks, which would not be built."""
    planted = {"planted_key": [PATIENT]}
    parts = {name: {**info[name], **planted} for name in ("image", "sampler", "training")}
    return {**info, **parts, **planted, "version": "0.0.9"}


@pytest.fixture(scope="module")
def trained(model_file, tmp_path_factory):
    """The tiny model in a folder whose name must not get out, with stray entries in what is said of it."""
    path = Path(shutil.copy(model_file, tmp_path_factory.mktemp(PLACE) / "model.pt"))
    write_model_info(path, plant(read_model_info(model_file)))
    return path


@pytest.fixture(scope="module")
def written(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    export_weights(trained, folder, BUNDLE)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_folder_contains_weights_settings_card_and_checksums(written):
    assert sorted(contents(written)) == NAMES


def test_weights_are_those_of_the_model_bit_for_bit(written, network):
    with safe_open(str(written / "model.safetensors"), "pt") as file:
        assert sorted(file.keys()) == sorted(network.state_dict())
        for name, value in network.state_dict().items():
            assert torch.equal(file.get_tensor(name), value), name


def test_half_weights_take_half_the_space_and_leave_the_statistics_whole(written, trained, network, tmp_path):
    export_weights(trained, tmp_path / "half", BUNDLE, half=True)
    file = tmp_path / "half" / "model.safetensors"
    with safe_open(str(file), "pt") as half:
        assert half.get_tensor("unet.conv_in.weight").dtype is torch.float16
        assert half.get_tensor("autoencoder.latent_std").dtype is torch.float32
    loaded = load(file, "cpu").network
    for name, value in network.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=1e-3, atol=1e-6)
    assert file.stat().st_size < 0.7 * (written / "model.safetensors").stat().st_size  # tiny: much is header
    export_weights(file, tmp_path / "again", BUNDLE, half=True)
    assert contents(tmp_path / "again") == contents(tmp_path / "half")


def test_header_describes_the_weights(written):
    with safe_open(str(written / "model.safetensors"), "pt") as file:
        header = file.metadata()
    metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
    assert (header["format"], header["bundle"], header["bundle_version"]) == (
        "pt",
        metadata["name"],
        metadata["version"],
    )
    assert json.loads(header["model"]) == read_model_info(written / "model.safetensors")
    networks = json.loads(header["model"])["networks"]
    assert (networks["autoencoder"]["channels"], networks["unet"]["channels"]) == ([8, 16], [16, 16, 32])


@pytest.mark.parametrize("alone", [False, True], ids=["with model.json", "the file alone"])
def test_file_is_all_that_sampling_takes(alone, written, model_file, tmp_path):
    folder = Path(shutil.copytree(written, tmp_path / "FOLDER"))
    if alone:
        (folder / "model.json").unlink()
    (line,) = [line for line in (folder / "README.md").read_text().splitlines() if ".sample(" in line]
    assert line == 'images = mf.load("FOLDER").sample("cardiomegaly", n=4)'
    images = load(folder, "cpu").sample("cardiomegaly", n=2)
    assert torch.equal(images, load(model_file, "cpu").sample("cardiomegaly", n=2))


def test_command_of_the_card_samples_in_a_bundle(written, tmp_path):
    (command,) = [line for line in (written / "README.md").read_text().splitlines() if "monai.bundle run" in line]
    given = shlex.split(command.replace("FOLDER", str(written)).replace("64", "2"))[4:]
    options = {name.removeprefix("--"): value for name, value in zip(given[1::2], given[2::2], strict=True)}
    options["num_samples"] = int(options["num_samples"])
    config_file = str(BUNDLE / options.pop("config_file"))
    try:
        run(run_id=given[0], config_file=config_file, output_dir=str(tmp_path / "samples"), **options)
    finally:  # as the end of its process would
        leave_folders()
    assert len(list((tmp_path / "samples").glob("1_cardiomegaly_*.png"))) == 2


def test_only_known_keys_of_the_description_are_kept(written, model_file):
    info = read_model_info(written / "model.safetensors")
    assert info == {**read_model_info(model_file), "version": "0.0.9"}


def test_all_settings_of_the_sampler_are_kept():
    assert set(SETTINGS) == set(LatentDiffusionSampler(NoiseSchedule()).settings())


def test_weights_that_were_changed_afterwards_are_refused(written, network, tmp_path):
    folder = Path(shutil.copytree(written, tmp_path / "sent"))
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.safetensors is damaged or was replaced"):
        load_weights(network, folder / "model.safetensors")


def test_checksums_hold_and_leave_the_card_to_be_completed(written):
    listed = dict(line.split("  ")[::-1] for line in (written / "checksums.sha256").read_text().splitlines())
    assert listed == {name: file_sha256(written / name) for name in ("model.json", "model.safetensors")}


def test_same_model_gives_the_same_bytes(written, trained, tmp_path):
    export_weights(trained, tmp_path, BUNDLE)
    assert contents(tmp_path) == contents(written)


def test_exporting_an_export_reproduces_it(written, tmp_path):
    export_weights(written / "model.safetensors", tmp_path, BUNDLE)
    assert contents(tmp_path) == contents(written)


@pytest.mark.parametrize("planted", [PLACE, PATIENT, "planted_key"])
def test_nothing_that_is_written_names_a_place_or_a_patient(written, planted):
    assert [name for name, content in contents(written).items() if planted.encode() in content] == []


def test_export_over_an_older_one_is_whole(written, trained, tmp_path):
    folder = Path(shutil.copytree(written, tmp_path / "old"))
    (folder / "checksums.sha256").write_text(f"{'0' * 64}  model.safetensors\n")
    export_weights(trained, folder, BUNDLE)
    assert contents(folder) == contents(written)


def test_folder_with_other_files_is_refused_as_an_upload_would_include_them(written, trained, tmp_path):
    folder = Path(shutil.copytree(written, tmp_path / "old"))
    (folder / "runs").mkdir()
    (folder / "runs" / "0.png").write_text("of a patient")
    with pytest.raises(ValueError, match=r"contains 1 other files, e\.g\. .*0\.png, which an upload .* would include"):
        export_weights(trained, folder, BUNDLE)


def test_card_has_a_head_that_the_hub_reads(written):
    card = pytest.importorskip("huggingface_hub").ModelCard.load(written / "README.md")
    assert (card.data.library_name, card.data.license) == ("monai", "unknown")


def test_export_killed_between_its_files_leaves_no_list_that_refuses_them(
    written, trained, network, tmp_path, monkeypatch
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
        export_weights(trained, folder, BUNDLE)
    load_weights(network, folder / "model.safetensors")


@pytest.fixture
def export(trained, tmp_path):
    """Runs `medfusion export --format safetensors` with the tiny networks."""
    given = ["--model-file", str(trained), "--output", str(tmp_path / "out"), "--bundle", str(BUNDLE)]

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
        ([1], "does not contain a JSON object"),
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
        (["--model-file", "none.pt"], "do not exist"),
        (
            ["--format", "onnx", "--report", "x"],
            "--report is for --format safetensors or diffusers, received --format onnx",
        ),
        (["--format", "diffusers", "--half"], "--half is for --format safetensors, received --format diffusers"),
        (["--license", "CC BY"], "license must be one of the Hugging Face hub's identifiers"),
        (["--format", "pickle"], "onnx, torchscript, safetensors, diffusers, received 'pickle'"),
    ],
)
def test_export_that_cannot_be_made_is_refused_with_what_to_do(more, words, export, capsys, tmp_path):
    assert export(*more) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bundle_without_metadata_is_refused(trained, tmp_path):
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    shutil.copy(BUNDLE / "configs" / "inference.yaml", tmp_path / "bundle" / "configs")
    with pytest.raises(ValueError, match=r"metadata\.json cannot be read"):
        export_weights(trained, tmp_path / "out", tmp_path / "bundle")


def test_card_is_of_the_bundle_whose_models_folder_contains_the_weights(trained, written, tmp_path):
    shutil.copytree(BUNDLE / "configs", tmp_path / "bundle" / "configs")
    shutil.copytree(trained.parent, tmp_path / "bundle" / "models")
    export_weights(tmp_path / "bundle", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(written)


def test_weights_that_lie_in_no_bundle_go_out_without_one(trained, written, tmp_path):
    export_weights(trained, tmp_path)
    assert "exported without a bundle" in (tmp_path / "README.md").read_text()
    with safe_open(str(tmp_path / "model.safetensors"), "pt") as file:
        assert "bundle" not in file.metadata()
    assert (tmp_path / "model.json").read_bytes() == (written / "model.json").read_bytes()


def test_zip_has_to_be_unpacked_first(tmp_path):
    (tmp_path / "bundle.zip").write_bytes(b"PK")
    with pytest.raises(WeightsError, match="unzip it"):
        export_weights(tmp_path / "bundle.zip", tmp_path / "out")
