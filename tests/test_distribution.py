"""What is given to others: that it is whole, the same each time, and works where there is nothing else."""

import hashlib
import json
import os
import shlex
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from tiny_models import copy_of_chest_bundle, small_wheel, tool_named, used_bundle
from tiny_training import TINY_NETWORKS

ROOT = Path(__file__).parents[1]
BUNDLES = sorted((ROOT / "bundles").glob("medfusion_*"))
SCHEMA = Path(os.environ.get("MONAI_META_SCHEMA", ROOT / "../shared/reference/meta_schema_20240725.json"))
TINY = {
    **TINY_NETWORKS,
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
    return tool_named("build_bundles")


@pytest.fixture(scope="session")
def dist(tool, tmp_path_factory):
    """The folder that `make bundles` fills."""
    folder = tmp_path_factory.mktemp("dist")
    assert tool.main(["--output", str(folder), "--without-weights"]) == 0
    return folder


@pytest.fixture
def bundle(tmp_path):
    """A copy of the chest bundle, without weights."""
    return copy_of_chest_bundle(tmp_path)


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
    assert {name.split("/")[1] for name in names} == {
        "configs",
        "docs",
        "LICENSE",
        "medfusion_monai",
        "requirements.txt",
    }


def test_wheel_holds_every_file_of_the_package_and_no_other(dist):
    (wheel,) = dist.glob("*.whl")
    package = ROOT / "medfusion_monai"
    files = {path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    names = {name for name in names_in(wheel) if name.startswith("medfusion_monai/")}
    assert names == {path.relative_to(ROOT).as_posix() for path in files}


def test_zip_holds_the_package_as_the_wheel_has_it(tool, dist):
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(next(dist.glob("medfusion_cxr_*.zip"))) as archive:
        names = [name for name in archive.namelist() if name.startswith("medfusion_cxr/medfusion_monai/")]
        held = {name.removeprefix("medfusion_cxr/"): archive.read(name) for name in names}
    assert held == tool.package_in(wheel)
    assert not any("tests" in name or "__pycache__" in name for name in held)


def test_zip_lists_what_the_package_needs(dist, tool):
    with zipfile.ZipFile(next(dist.glob("medfusion_cxr_*.zip"))) as archive:
        lines = archive.read("medfusion_cxr/requirements.txt").decode().splitlines()
    assert "torch>=2.14" in lines
    assert len(lines) == len(tool.requirements())


def test_building_twice_gives_the_same_bytes(tool, dist, tmp_path):
    assert tool.main(["--output", str(tmp_path), "--without-weights"]) == 0
    digests = [
        {path.name: hashlib.sha256(path.read_bytes()).digest() for path in x.iterdir()} for x in (dist, tmp_path)
    ]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 1 + len(BUNDLES)


def test_zip_does_not_depend_on_times_or_hidden_files(tool, bundle, tmp_path):
    (first,) = tool.build_zip(tool.parts_of(bundle), {}, tmp_path, None)
    before = first.read_bytes()
    os.utime(bundle / "LICENSE", (1, 1))
    (bundle / "configs" / ".swp").write_text("of an editor")
    (bundle / "runs").mkdir()
    (bundle / "runs" / "log.txt").write_text("of a run")
    (second,) = tool.build_zip(tool.parts_of(bundle), {}, tmp_path, None)
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
        ({"numpy_version": ">=2.2"}, "numpy >=2.2, tested with"),
        ({"required_packages_version": {"medfusion-monai": "9.9"}}, "medfusion-monai 9.9, tested with"),
        ({"required_packages_version": {"medfusion-monai": "9.9"}}, "medfusion-monai is not needed"),
        ({"required_packages_version": {}}, "einops is missing"),
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
    monkeypatch.setattr(tool, "build_wheel", small_wheel)
    assert tool.main(["--output", str(tmp_path / "out"), "--bundles", ".", "--without-weights"]) == 0
    (archive,) = (tmp_path / "out").glob("*.zip")
    assert archive.name.startswith(f"{bundle.name}_v")


def test_absent_schema_is_said(tool, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tool, "SCHEMA", tmp_path / "none.json")
    assert tool.read_schema() is None
    assert "not checked against it (set MONAI_META_SCHEMA)" in capsys.readouterr().err


def test_versions_are_those_for_the_oldest_python(tool):
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert f'numpy=={tool.tested_versions()["numpy"]}; python_version < "3.11"' in pins


def borrow(environment):
    """Let an environment see the packages of this interpreter, but not this tree."""
    site = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
    # A line of a .pth file is put on the path, but .pth files there, the editable install's, are not followed.
    (site / "borrowed.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))


def test_zip_is_complete_in_itself(tool, dist, tmp_path):
    """Its README's commands work where none of this project is installed."""
    (wheel,) = dist.glob("*.whl")
    (package,) = tool.build_zip(tool.parts_of(used_bundle(tmp_path)), tool.package_in(wheel), tmp_path, None)
    with zipfile.ZipFile(package) as archive:
        archive.extractall(tmp_path / "unzipped")
    venv.create(tmp_path / "environment", symlinks=True)
    borrow(tmp_path / "environment")
    unzipped = tmp_path / "unzipped" / "medfusion_cxr"
    lines = (unzipped / "docs" / "README.md").read_text().splitlines()
    here, elsewhere = (line for line in lines if "run inference" in line and "--label" in line)
    python = [line for line in lines if line.startswith(("import medfusion_monai", "images = mf.load"))]
    assert elsewhere == "PYTHONPATH=medfusion_cxr " + here.replace("configs/", "medfusion_cxr/configs/")
    path = os.pathsep.join([str(tmp_path / "environment" / "bin"), os.environ["PATH"]])
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PATH": path}

    def execute(command, folder):
        result = subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    place = "import medfusion_monai; print(medfusion_monai.__file__, images.shape)"
    said = execute(shlex.join(["python", "-c", "\n".join([*python, place])]), unzipped)
    assert said.split()[0] == str(unzipped / "medfusion_monai" / "__init__.py")
    assert said.partition(" ")[2].strip() == "torch.Size([4, 3, 32, 48])"
    execute(elsewhere.replace("--num_samples 64", "--num_samples 2"), unzipped.parent)
    images = sorted((tmp_path / "unzipped" / "samples" / "medfusion_cxr").glob("1_*.png"))
    assert len(images) == 2
    with Image.open(images[0]) as picture:
        assert (picture.mode, picture.size) == ("RGB", (48, 32))


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
        borrow(environment)
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
    sizes = [part for key, value in TINY.items() for part in (f"--{key}", value)]

    def run_bundle(run_id, *configs_and_more):
        configs = [str(bundle / "configs" / part) for part in configs_and_more if str(part).endswith(".yaml")]
        more = [part for part in configs_and_more if not str(part).endswith(".yaml")]
        installed("python", "-m", "monai.bundle", "run", run_id, "--config_file", str(configs), *more)

    run_bundle("training", "train.yaml", "demo.yaml", *sizes, "--dataset_dir", tmp_path / "data")
    assert (bundle / "models" / "model.pt").is_file()
    run_bundle("inference", "inference.yaml", "--num_samples", 1, "--label", 1)
    (image,) = (tmp_path / "unzipped" / "samples" / name).glob("*.png")
    with Image.open(image) as picture:
        assert picture.size == (32, 32)
    assert {path.name for path in bundle.iterdir()} == {
        "configs", "docs", "LICENSE", "medfusion_monai", "models", "requirements.txt"
    }  # fmt: skip
