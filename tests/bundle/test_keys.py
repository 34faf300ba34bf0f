"""Unknown keys are refused without MONAI and PyTorch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from medfusion_monai.bundle.keys import refuse_unknown_keys
from medfusion_monai.cli import main

BASE = """
steps: 3
train: {trainer: {max_epochs: 2}, handlers: [{name: first}]}
"""
OVERLAY = """
train#trainer#device: cpu
+train: {length: 4}
train::trainer::hooks: [{on: start}]
+steps_list: [1]
"""
CXR = Path(__file__).parents[2] / "bundles" / "medfusion_cxr" / "configs"


@pytest.fixture
def files(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "overlay.yml").write_text(OVERLAY)
    (tmp_path / "last.json").write_text(json.dumps({"+steps_list": [2], "train#handlers#0": {"other": {"name": 1}}}))
    return [str(tmp_path / name) for name in ("base.yaml", "overlay.yml", "last.json")]


def is_refused(files, key):
    try:
        refuse_unknown_keys(files, [key])
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("key", ["steps", "_meta_", "train#trainer#device", "train::length", "steps_list#1", "train#n"])
@pytest.mark.parametrize("suffix", ["", "#new", "#new#newer", "x", "#0", "#other#name", "#other#name#new"])
def test_files_are_merged_as_monai_merges_them(key, suffix, files):
    parser = ConfigParser()
    parser.read_config(files)
    above = "::".join((key + suffix).replace("#", "::").split("::")[:-1])
    assert is_refused(files, key + suffix) == (key + suffix not in parser and (not above or above not in parser))


@pytest.mark.parametrize("overlay", [None, "demo.yaml", "published.yaml", "monai_networks.yaml"])
def test_every_key_of_a_bundle_is_known(overlay):
    files = [str(CXR / name) for name in ("train.yaml", overlay) if name]
    parser = ConfigParser()
    parser.read_config(files)
    parser.parse()
    refuse_unknown_keys(files, [key for key in parser.ref_resolver.items if key])
    with pytest.raises(ValueError, match=r"^difusion_steps \(near: diffusion_steps.*not a key"):
        refuse_unknown_keys(files, ["seed", "difusion_steps"])


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.yaml", "- 1", "contains a list instead of keys"),
        ("a.yaml", "", "contains a NoneType instead of keys"),
        ("a.txt", "a: 1", r"is not named \.yaml"),
        ("a.json", "{", "a.json: cannot be read as configs"),
        ("a.yaml", "train#trainer: 1", "a.yaml: cannot be read as configs: 'train'"),
    ],
)
def test_file_that_is_not_a_config_is_refused(name, content, found, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=found):
        refuse_unknown_keys([str(tmp_path / name)], [])


def test_unknown_key_is_refused_before_monai_is_imported(files):
    code = (
        "import sys\n"
        "from medfusion_monai.cli import main\n"
        "print(main(['check', *sys.argv[1:], '--set', 'stepz=1']))\n"
        "print([name for name in ('torch', 'monai', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["2", "[]"]
    assert result.stderr.startswith("medfusion: error: stepz (near: steps")


def test_known_key_reaches_the_checks(tmp_path, capsys):
    (tmp_path / "train.yaml").write_text("steps: 3\nlength: '@lenght'\ntraining: []\n")
    assert main(["check", str(tmp_path / "train.yaml"), "--set", "steps='@stepz'"]) == 2
    printed = capsys.readouterr().out
    assert "config: references  problem" in printed
    assert "length refers to @lenght" in printed
    assert "steps refers to @stepz" in printed
