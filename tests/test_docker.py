"""The Dockerfile: its parts are those of the project, and its commands work as shell lines."""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml
from dockerfile import arguments_of, command_of, instructions, run_commands, sent_files

from medfusion_monai.cli import build_parser

try:
    import tomllib
except ImportError:  # before Python 3.11
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text()
FOUND = instructions(TEXT)
IGNORED = (ROOT / ".dockerignore").read_text().splitlines()
DOCUMENTED = run_commands((ROOT / "docs" / "docker.md").read_text(), "medfusion")
WRITTEN = {"/data", "/models", "/tmp"}


def sources():
    return [word for arguments in arguments_of(FOUND, "COPY") for word in arguments.split()[:-1]]


def default_of(name):
    (text,) = [line for line in arguments_of(FOUND, "ARG") if line.startswith(f"{name}=")]
    return shlex.split(text)[0].partition("=")[2]


def verbs():
    (verb,) = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return verb.choices


def needs_studio():
    if "studio" not in verbs():
        pytest.skip("this tree has no studio")


def test_copied_files_exist_and_are_sent_to_the_build():
    assert {word for word in sources() if not (ROOT / word).exists()} == set()
    admitted = [line[1:] for line in IGNORED if line.startswith("!")]
    assert {line.split("/")[0] for line in admitted} == set(sources())


def test_of_a_clone_in_use_only_what_belongs_to_the_project_is_sent_to_the_build(tmp_path):
    bundle = "bundles/medfusion_cxr"
    own = {f"{bundle}/LICENSE", f"{bundle}/configs/train.yaml", f"{bundle}/docs/README.md"}
    own |= {f"{bundle}/models/starter/model.safetensors", "medfusion_monai/cli/studio.py", "README.md"}
    assert {name for name in own if not (ROOT / name).is_file()} == set()
    planted = {f"{bundle}/{name}/a.png" for name in ("SAMPLES", "AUDIT", "REPORT", "data/set/images", "mine/configs")}
    planted |= {f"{bundle}/{name}" for name in ("runs/x/checkpoint.pt", "models/model.pt", "table.csv", "samples.zip")}
    planted |= {f"bundles/{name}" for name in ("data/medfusion_cxr/datalist.json", "samples/docs/a.png", "a.dcm")}
    planted |= {"data/a.png", "SAMPLES/a.png", ".git/config", "medfusion_monai/cli/__pycache__/studio.pyc"}
    for name in own | planted:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert sent_files(tmp_path, IGNORED) == own


def test_extras_are_those_of_the_project():
    needs_studio()
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(default_of("EXTRAS").split()) <= known.keys()


def test_every_installation_of_packages_is_pinned():
    commands = [part for line in arguments_of(FOUND, "RUN") for part in line.split("&&") if "pip install" in part]
    assert len(commands) == 3
    assert all("--constraint constraints.txt" in part or "--no-deps" in part for part in commands)


def test_python_is_one_that_the_constraints_hold_for():
    (image,) = arguments_of(FOUND, "FROM")
    assert re.fullmatch(r"python:3\.\d+-slim", image)
    assert f'python_version >= "{image[7:-5]}"' in (ROOT / "constraints.txt").read_text()


def test_container_does_not_run_as_root():
    assert arguments_of(FOUND, "USER") == ["1000:1000"]
    assert FOUND.index(("USER", "1000:1000")) > max(FOUND.index(pair) for pair in FOUND if pair[0] == "RUN")


def test_no_host_but_the_container_is_named():
    assert set(re.findall(r"https?://([^/:'\"]+)", TEXT)) == {"127.0.0.1"}


def test_default_command_is_one_of_the_program():
    needs_studio()
    command = command_of(FOUND)
    assert command[0] == "medfusion"
    assert (ROOT / build_parser().parse_args(command[1:]).model).is_dir()


def test_port_is_the_same_everywhere():
    command = command_of(FOUND)
    (health,) = arguments_of(FOUND, "HEALTHCHECK")
    port = command[command.index("--port") + 1]
    assert arguments_of(FOUND, "EXPOSE") == [port]
    assert f"http://127.0.0.1:{port}/health" in health
    published = [options[options.index("--publish") + 1] for options, _ in DOCUMENTED if "--publish" in options]
    assert published
    assert set(published) == {f"127.0.0.1:{port}:{port}"}


def test_volumes_are_those_of_the_documentation():
    mounts = [word for options, _ in DOCUMENTED for word in options if word.startswith("$PWD/")]
    targets = {mount.split(":")[1] for mount in mounts if not mount.endswith(":ro")}
    assert targets | WRITTEN == WRITTEN
    assert {"/tmp", *json.loads(arguments_of(FOUND, "VOLUME")[0])} == WRITTEN


@pytest.mark.parametrize("command", [words for _, words in DOCUMENTED if words], ids=" ".join)
def test_documented_command_is_one_of_the_program_or_a_bundle(command):
    if command[0] == "medfusion":
        if command[1] == "studio":
            needs_studio()
        assert build_parser().parse_args(command[1:]).verb == command[1]
        return
    assert command[:4] == ["python", "-m", "monai.bundle", "run"]
    given = dict(zip(command[5::2], command[6::2], strict=True))
    config = yaml.safe_load((ROOT / given.pop("--config_file")).read_text())
    assert {command[4], *(name.removeprefix("--") for name in given)} <= config.keys()


@pytest.fixture
def container(tmp_path):
    """Run shell lines in a folder and an environment that stand for a container's, and the RUN lines before."""
    environment, folder = tmp_path / "environment", tmp_path / "opt"
    venv.create(environment, symlinks=True, with_pip=True)
    site = sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)})
    here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(site) / "borrowed.pth").write_text("\n".join(here))  # packages of this interpreter count as installed
    folder.mkdir()
    places = {name: tmp_path / name.strip("/") for name in ("/data", "/models")}
    variables = {name: os.environ[name] for name in ("LANG", "PIP_CERT", "PIP_INDEX_URL") if name in os.environ}
    variables |= dict(word.split("=", 1) for line in arguments_of(FOUND, "ENV") for word in shlex.split(line))
    variables |= {"PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    extras = default_of("EXTRAS") if "studio" in verbs() else "dicom"

    def shell(line):
        for name, place in places.items():
            line = re.sub(rf"(?<![\w/]){name}\b", str(place), line)
        given = {**variables, "TORCH_INDEX_URL": default_of("TORCH_INDEX_URL"), "EXTRAS": extras}
        result = subprocess.run(["sh", "-c", line], cwd=folder, env=given, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{line}\n{result.stdout[-2000:]}{result.stderr[-3000:]}"
        return result.stdout

    sent = sent_files(ROOT, IGNORED)
    for name, arguments in FOUND:
        if name == "COPY":
            for file in sent:
                if file.split("/")[0] in arguments.split()[:-1]:
                    (folder / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / file, folder / file)
        elif name == "RUN":
            shell(arguments)
    return shell


@pytest.mark.slow
def test_lines_of_the_dockerfile_and_a_documented_run_work_in_a_shell(container, tmp_path):
    package = container("python -c 'import medfusion_monai; print(medfusion_monai.__file__)'")
    assert str(tmp_path / "environment") in package
    assert [path.name for path in (tmp_path / "opt").glob("medfusion_monai*")] == []
    command = next(words for _, words in DOCUMENTED if "inference" in words)
    container(shlex.join(command).replace("--num_samples 16", "--num_samples 1 --num_inference_steps 2"))
    assert len(list((tmp_path / "data").glob("*.png"))) == 1
