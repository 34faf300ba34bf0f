"""The program: what it prints, and how it fails."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from medfusion_monai.cli import main


@pytest.fixture
def folders(tmp_path):
    for name in ("b", "a"):
        (tmp_path / "root" / name).mkdir(parents=True)
        for index in range(10):
            Image.fromarray(np.full((4, 4), index, np.uint8)).save(tmp_path / "root" / name / f"{name}{index}.png")
    return tmp_path


def test_phantoms_end_with_a_table_and_the_path(tmp_path, capsys):
    output = tmp_path / "out"
    assert main(["prepare", "phantoms", "--output", str(output), "--num-images", "20", "--size", "16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["split", "no_cardiomegaly", "cardiomegaly", "patients"]
    assert lines[1].split() == ["training", "8", "8", "16"]
    assert lines[-1] == str(output / "datalist.json")


def test_folder_options_reach_the_datalist(folders, capsys):
    output = folders / "out"
    arguments = [
        "prepare",
        "folder",
        "--root",
        str(folders / "root"),
        "--output",
        str(output),
        "--classes",
        "b=sick",
        "a",
    ]
    assert main([*arguments, "--fractions", "0.5", "0.3", "0.2", "--seed", "4", "--channels", "1", "--copy"]) == 0
    document = json.loads((output / "datalist.json").read_text())
    assert (document["class_names"], document["seed"]) == (["sick", "a"], 4)
    assert [len(document[split]) for split in ("training", "validation", "test")] == [10, 6, 4]
    assert len(list((output / "images").rglob("*.png"))) == 20


def test_table_options_choose_rows_and_columns(folders, capsys):
    rows = [f"{name}/{name}{index}.png,{name},p{index // 2}{name},{index % 2}" for name in "ab" for index in range(10)]
    (folders / "t.csv").write_text("\n".join(["file,finding,person,view", *rows]))
    arguments = ["prepare", "folder", "--root", str(folders / "root"), "--output", str(folders / "out")]
    arguments += ["--csv", str(folders / "t.csv"), "--image-column", "file", "--label-column", "finding"]
    assert main([*arguments, "--patient-column", "person", "--where", "view=1"]) == 0
    assert "training" in capsys.readouterr().out
    document = json.loads((folders / "out/datalist.json").read_text())
    assert sum(len(document[split]) for split in ("training", "validation", "test")) == 10
    assert main([*arguments, "--where", "view=1", "--where", "view=0"]) == 2


def test_left_out_images_are_printed(folders, capsys):
    (folders / "root/a/broken.png").write_bytes(b"no image")
    arguments = ["prepare", "folder", "--root", str(folders / "root"), "--output", str(folders / "out")]
    assert main(arguments) == 2
    assert main([*arguments, "--skip-unreadable"]) == 0
    assert "left out as unreadable: 1" in capsys.readouterr().out


def test_data_error_is_one_message_and_code_two(tmp_path, capsys):
    assert main(["prepare", "folder", "--root", str(tmp_path / "no"), "--output", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("medfusion: error: root '")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["prepare"],
        ["prepare", "folder", "--root", "r"],
        ["prepare", "folder", "--root", "r", "--output", "o", "--where", "subset"],
        ["prepare", "phantoms", "--output", "o", "--num-images", "0"],
        ["prepare", "phantoms", "--output", "o", "--seed", "-1"],
        ["summarize", "--set", "image_size"],
    ],
)
def test_wrong_arguments_exit_with_code_two(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: medfusion" in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from medfusion_monai.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'monai', 'numpy', 'PIL') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "prepare" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"
