"""What is given to others: that it is whole, the same each time, and works where there is nothing else."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from monai.bundle.scripts import download_large_files
from PIL import Image

ROOT = Path(__file__).parents[1]
BUNDLES = sorted((ROOT / "bundles").glob("medfusion_*"))
SCHEMA = Path(os.environ.get("MONAI_META_SCHEMA", ROOT / "../shared/reference/meta_schema_20240725.json"))
TINY = {
    "image_size": [32, 32],
    "autoencoder_channels": [8, 8, 16, 16],
    "unet_channels": [16, 16, 16, 32],
    "unet_embedding_channels": 32,
    "unet_norm_groups": 8,
    "autoencoder_steps": 2,
    "autoencoder_val_interval": 1,
    "diffusion_steps": 2,
    "diffusion_val_interval": 1,
    "num_inference_steps": 2,
}


@pytest.fixture(scope="session")
def tool():
    """The module ``tools/build_bundles.py``."""
    os.environ.setdefault("MONAI_META_SCHEMA", str(SCHEMA))
    spec = importlib.util.spec_from_file_location("build_bundles", ROOT / "tools" / "build_bundles.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def dist(tool, tmp_path_factory):
    """The folder that `make bundles` fills."""
    folder = tmp_path_factory.mktemp("dist")
    assert tool.main(["--output", str(folder), "--without-weights"]) == 0
    return folder


@pytest.fixture
def bundle(tmp_path):
    """A copy of the chest bundle, without weights."""
    return Path(
        shutil.copytree(BUNDLES[0], tmp_path / "medfusion_cxr", ignore=shutil.ignore_patterns("models", "runs"))
    )


def change(path, **entries):
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | entries))


def names_in(path):
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


@pytest.mark.parametrize("source", BUNDLES, ids=lambda path: path.name)
def test_zip_holds_the_bundle_s_files_and_nothing_of_a_run(source, dist):
    version = json.loads((source / "configs" / "metadata.json").read_text())["version"]
    names = names_in(dist / f"{source.name}_v{version}.zip")
    folder = source.name
    assert {f"{folder}/configs/metadata.json", f"{folder}/docs/data_license.txt", f"{folder}/LICENSE"} <= set(names)
    assert {name.split("/")[1] for name in names} == {"configs", "docs", "LICENSE"}


def test_wheel_holds_every_module_of_the_tree_and_no_other(dist):
    (wheel,) = dist.glob("*.whl")
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "medfusion_monai").rglob("*.py")}
    assert {name for name in names_in(wheel) if name.endswith(".py")} == modules


def test_building_twice_gives_the_same_bytes(tool, dist, tmp_path):
    assert tool.main(["--output", str(tmp_path), "--without-weights"]) == 0
    digests = [
        {path.name: hashlib.sha256(path.read_bytes()).digest() for path in x.iterdir()} for x in (dist, tmp_path)
    ]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 1 + len(BUNDLES)


def test_zip_does_not_depend_on_times_or_hidden_files(tool, bundle, tmp_path):
    (first,) = tool.build_zip(bundle, [], tmp_path, None)
    before = first.read_bytes()
    os.utime(bundle / "LICENSE", (1, 1))
    (bundle / "configs" / ".swp").write_text("of an editor")
    (bundle / "runs").mkdir()
    (bundle / "runs" / "log.txt").write_text("of a run")
    (second,) = tool.build_zip(bundle, [], tmp_path, None)
    assert second.read_bytes() == before


@pytest.mark.skipif(not SCHEMA.is_file(), reason=f"no {SCHEMA}; set MONAI_META_SCHEMA")
@pytest.mark.parametrize("source", BUNDLES, ids=lambda path: path.name)
def test_bundle_has_no_fault_by_the_zoo_s_schema_and_our_own_checks(source, tool):
    assert tool.faults_of(source, tool.read_schema()) == []


@pytest.mark.skipif(not SCHEMA.is_file(), reason=f"no {SCHEMA}; set MONAI_META_SCHEMA")
def test_what_the_schema_refuses_is_named(tool):
    (fault,) = tool.schema_faults(
        json.loads((BUNDLES[0] / "configs/metadata.json").read_text()) | {"task": 3}, tool.read_schema()
    )
    assert "task" in fault
    assert "3" in fault


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"version": "0.9.0"}, "version 0.9.0 is not in the changelog"),
        ({"pytorch_version": "1.0"}, "torch 1.0, tested with"),
        ({"required_packages_version": {"medfusion-monai": "9.9"}}, "medfusion-monai 9.9, tested with"),
        ({"required_packages_version": {}}, "does not name medfusion-monai"),
    ],
)
def test_version_that_was_not_tested_is_a_fault(entries, words, tool, bundle):
    change(bundle / "configs" / "metadata.json", **entries)
    assert any(words in fault for fault in tool.faults_of(bundle, None))


def test_missing_files_sections_and_code_are_faults(tool, bundle):
    readme = bundle / "docs" / "README.md"
    readme.write_text(readme.read_text().replace("## Limits", "## Bounds"))
    (bundle / "scripts.py").write_text("")
    assert tool.faults_of(bundle, None) == [
        "scripts.py is code: it belongs into the package",
        "docs/README.md has no section '## Limits'",
    ]
    (bundle / "docs" / "data_license.txt").write_text(" ")
    assert tool.faults_of(bundle, None)[0] == "docs/data_license.txt is missing or empty"


def test_nothing_is_built_of_a_bundle_with_a_fault(tool, bundle, tmp_path, capsys):
    (bundle / "LICENSE").unlink()
    assert tool.main(["--output", str(tmp_path / "out"), "--bundles", str(bundle)]) == 2
    assert "medfusion_cxr: LICENSE is missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bundle_may_be_the_working_directory(tool, bundle, monkeypatch, tmp_path):
    monkeypatch.chdir(bundle)
    monkeypatch.setattr(tool, "build_wheel", lambda output: Path(shutil.copy(bundle / "LICENSE", output)))
    assert tool.main(["--output", str(tmp_path / "out"), "--bundles", ".", "--without-weights"]) == 0
    (archive,) = (tmp_path / "out").glob("*.zip")
    assert archive.name.startswith(f"{bundle.name}_v")


def test_absent_schema_is_said(tool, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tool, "SCHEMA", tmp_path / "none.json")
    assert tool.read_schema() is None
    assert "not checked against it (set MONAI_META_SCHEMA)" in capsys.readouterr().err


@pytest.fixture
def weighty(bundle, tool, monkeypatch):
    """The bundle with weights, one file of which is too large for a zip."""
    monkeypatch.setattr(tool, "LARGE_BYTES", 100)
    (bundle / "models").mkdir()
    (bundle / "models" / "model.pt").write_bytes(b"w" * 101)
    (bundle / "models" / "model.json").write_text("{}")
    (bundle / "models" / ".model.pt.77").write_bytes(b"half-written")
    return bundle


def test_large_weights_need_an_address(weighty, tool, tmp_path, capsys):
    assert tool.main(["--output", str(tmp_path / "out"), "--bundles", str(weighty)]) == 2
    assert "model.pt: more than 25 MB" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_large_weights_lie_beside_the_zip_and_monai_fetches_them_from_their_address(weighty, tool, tmp_path):
    hosted, here = tmp_path / "hosted", tmp_path / "here"
    hosted.mkdir()
    package, copy = tool.build_zip(weighty, tool.model_files(weighty), hosted, hosted.as_uri() + "/")
    assert "medfusion_cxr/models/model.json" in names_in(package)
    assert "medfusion_cxr/models/model.pt" not in names_in(package)
    with zipfile.ZipFile(package) as archive:
        archive.extractall(here)
    (entry,) = yaml.safe_load((here / "medfusion_cxr" / "large_files.yml").read_text())["large_files"]
    assert entry["hash_val"] == hashlib.sha256(b"w" * 101).hexdigest()
    assert entry["url"] == copy.as_uri()
    download_large_files(bundle_path=str(here / "medfusion_cxr"))
    assert (here / "medfusion_cxr" / "models" / "model.pt").read_bytes() == b"w" * 101


@pytest.fixture(params=["packages of this interpreter", pytest.param("everything fetched", marks=pytest.mark.slow)])
def installed(request, dist, tmp_path):
    """Runs a program of an environment that has the wheel, and not this tree, in a foreign folder."""
    environment = tmp_path / "environment"
    fetched = request.param == "everything fetched"
    venv.create(environment, symlinks=True, with_pip=fetched)
    python, (wheel,) = environment / "bin" / "python", dist.glob("*.whl")
    if fetched:
        command = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel]
    else:
        site = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
        # A line of a .pth file is put on the path, but .pth files there, the editable install's, are not followed.
        (site / "borrowed.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
        command = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            python,
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            wheel,
        ]
    subprocess.run(command, check=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(program, *arguments):
        variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [str(part) for part in (environment / "bin" / program, *arguments)]
        result = subprocess.run(command, cwd=elsewhere, env=variables, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    return run


@pytest.mark.parametrize(
    "name",
    [path.name if path.name.endswith("cxr") else pytest.param(path.name, marks=pytest.mark.slow) for path in BUNDLES],
)
def test_wheel_and_unzipped_bundle_train_and_sample_from_a_foreign_folder(name, installed, dist, tmp_path):
    place = installed("python", "-c", "import medfusion_monai; print(medfusion_monai.__file__)").strip()
    assert Path(place).is_relative_to(tmp_path / "environment")
    with zipfile.ZipFile(next(dist.glob(f"{name}_v*.zip"))) as archive:
        archive.extractall(tmp_path / "unzipped")
    bundle, modality = tmp_path / "unzipped" / name, name.removeprefix("medfusion_")
    data = ["--output", tmp_path / "data", "--modality", modality, "--num-images", 20, "--size", 32]
    installed("medfusion", "prepare", "phantoms", *data)
    tiny = [part for key, value in TINY.items() for part in (f"--{key}", value)]

    def run_bundle(run_id, config, *more):
        files = str([str(bundle / "configs" / file) for file in (config, "demo.yaml")])
        installed("python", "-m", "monai.bundle", "run", run_id, "--config_file", files, *tiny, *more)

    run_bundle("training", "train.yaml", "--dataset_dir", tmp_path / "data")
    assert (bundle / "models" / "model.pt").is_file()
    run_bundle("inference", "inference.yaml", "--num_samples", 1, "--label", 1)
    (image,) = (bundle / "eval").glob("*.png")
    with Image.open(image) as picture:
        assert picture.size == (32, 32)
