"""The output and errors of the program."""

import importlib.resources
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from pictures import picture
from PIL import Image

from medfusion_monai.cli import main


@pytest.fixture
def folders(tmp_path):
    for first, name in ((0, "b"), (100, "a")):
        (tmp_path / "root" / name).mkdir(parents=True)
        for index in range(10):
            Image.fromarray(picture(first + index)).save(tmp_path / "root" / name / f"{name}{index}.png")
    return tmp_path


def test_phantoms_end_with_a_table_and_the_path(tmp_path, capsys):
    output = tmp_path / "out"
    assert main(["prepare", "phantoms", "--output", str(output), "--num-images", "20", "--size", "16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["split", "no_cardiomegaly", "cardiomegaly", "patients"]
    assert lines[1].split() == ["training", "8", "8", "16"]
    assert lines[-1] == str(output / "datalist.json")


def test_class_name_that_the_terminal_cannot_show_is_no_error(folders, monkeypatch):
    (folders / "root" / "a").rename(folders / "root" / "größer")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert main(["prepare", "folder", "--root", str(folders / "root"), "--output", str(folders / "out")]) == 0
    sys.stdout.seek(0)
    assert sys.stdout.readlines()[1].split() == ["split", "b", r"gr\xf6\xdfer", "patients"]


def test_range_reaches_the_images_and_the_brightness_is_printed(folders, capsys):
    arguments = ["prepare", "folder", "--root", str(folders / "root"), "--output", str(folders / "out")]
    assert main([*arguments, "--range", "0", "500"]) == 0
    assert capsys.readouterr().out.startswith("brightness 0.00 to 0.51 (5th and 95th percentile; 0 black, 1 white)\n")
    assert np.asarray(Image.open(folders / "out/images/a/a5.png.png")).min() == round(105 / 500 * 65535)


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
    assert main([*arguments, "--where", "view=1", "--where", "view=0", "--overwrite"]) == 0
    document = json.loads((folders / "out/datalist.json").read_text())
    assert sum(len(document[split]) for split in ("training", "validation", "test")) == 20


@pytest.mark.parametrize(
    "options",
    [
        ["--where", "site=a"],
        ["--patient-column", "person"],
        ["--split-column", "fold"],
        ["--label-separator", "|"],
        ["--image-suffix", ".png"],
    ],
    ids=lambda o: o[0],
)
def test_options_of_a_table_need_a_table(options, folders, capsys):
    arguments = ["prepare", "folder", "--root", str(folders / "root"), "--output", str(folders / "out")]
    assert main([*arguments, *options]) == 2
    assert "Pass it with --csv" in capsys.readouterr().err
    assert not (folders / "out").exists()


def test_sub_folders_and_patients_of_the_path_are_chosen(folders, capsys):
    (folders / "root" / "c").mkdir()
    (folders / "root" / "c" / "note.txt").write_text("no image")
    arguments = ["prepare", "folder", "--root", str(folders / "root"), "--output", str(folders / "out")]
    assert main([*arguments, "--where", "folder=a", "--where", "folder=b", "--patient-pattern", "([a-b][0-9])[.]"]) == 0
    document = json.loads((folders / "out/datalist.json").read_text())
    assert (document["class_names"], document["test"][0]["patient"][0]) == (["a", "b"], "a")
    assert main([*arguments, "--where", "folder=x", "--overwrite"]) == 2
    assert "no sub-folders ['x']" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--patient-pattern", "(a)", "--patient-from-dicom"])


def test_images_without_or_with_several_chosen_labels_are_counted(folders, capsys):
    rows = [f"{name}/{name}{index},{name}|x" for name in "ab" for index in range(10)]
    (folders / "t.csv").write_text("\n".join(["image,label", *rows, "a/a0,b", "a/more,x"]))
    arguments = ["prepare", "folder", "--root", str(folders / "root"), "--output", str(folders / "out")]
    arguments += ["--csv", str(folders / "t.csv"), "--image-suffix", ".png", "--label-separator", "|"]
    assert main([*arguments, "--classes", "a", "b=B"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["split", "a", "B", "patients"]
    assert "left out as without any of the classes: 1" in lines
    assert "left out as of several classes: 1" in lines


def test_given_splits_modalities_and_repeats_are_told(folders, capsys):
    copy = folders / "root/a/a0_copy.png"
    copy.write_bytes((folders / "root/a/a0.png").read_bytes())
    sample = importlib.resources.files("pydicom") / "data" / "test_files" / "CT_small.dcm"
    (folders / "root/b/ct.dcm").write_bytes(sample.read_bytes())
    rows = [
        f"{name}/{name}{index}.png,{name},{'train' if index < 8 else 'val'}" for name in "ab" for index in range(10)
    ]
    rows += ["a/a0_copy.png,a,train", "b/ct.dcm,b,test"]
    (folders / "t.csv").write_text("\n".join(["image,label,fold", *rows]))
    arguments = ["prepare", "folder", "--root", str(folders / "root"), "--output", str(folders / "out")]
    arguments += ["--csv", str(folders / "t.csv"), "--split-column", "fold"]
    assert main(arguments) == 2
    assert main([*arguments, "--modalities", "CR", "CT"]) == 0
    assert "images that repeat another one: 1" in capsys.readouterr().out
    document = json.loads((folders / "out/datalist.json").read_text())
    assert [len(document[split]) for split in ("training", "validation", "test")] == [17, 4, 1]


def test_left_out_images_are_printed(folders, capsys):
    (folders / "root/a/broken.png").write_bytes(b"no image")
    arguments = ["prepare", "folder", "--root", str(folders / "root"), "--output", str(folders / "out")]
    assert main(arguments) == 2
    assert main([*arguments, "--skip-unreadable"]) == 0
    assert "left out as unreadable: 1" in capsys.readouterr().out


@pytest.fixture
def airogs(tmp_path):
    """A download of twelve images per class."""
    (tmp_path / "airogs" / "0").mkdir(parents=True)
    for index in range(24):
        pixels = np.full((4, 4, 3), (index, 0, 9), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "airogs" / "0" / f"T{index:02d}.jpg")
    rows = [f"T{index:02d},{'RG' if index % 2 else 'NRG'}" for index in range(24)]
    (tmp_path / "airogs" / "train_labels.csv").write_text("\n".join(["challenge_id,class", *rows]))
    return ["prepare", "airogs", "--root", str(tmp_path / "airogs"), "--output", str(tmp_path / "out")]


def test_counts_of_a_download_stand_beside_those_of_the_paper(airogs, capsys):
    assert main([*airogs, "--fractions", "0.5", "0.25", "0.25"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[:-1] == [
        ["split", "no_referable_glaucoma", "referable_glaucoma", "patients"],
        ["training", "6", "6", "12"],
        ["validation", "3", "3", "6"],
        ["test", "3", "3", "6"],
        ["all", "12", "12", "24"],
        ["paper", "98172", "3270", "60357"],
        ["reference", "12", "12", "24"],
        ["paper", "3270", "3270", "-"],
    ]


def test_options_of_a_download_reach_it(airogs, tmp_path, capsys):
    (tmp_path / "airogs/0/T00.jpg").unlink()
    assert main(airogs) == 2
    assert main([*airogs, "--allow-missing", "--seed", "1"]) == 0
    assert "left out as missing: 1" in capsys.readouterr().out
    assert main([*airogs, "--allow-missing", "--seed", "2"]) == 2
    (tmp_path / "airogs/0/T01.jpg").write_bytes(b"no image")
    assert main([*airogs, "--allow-missing", "--seed", "2", "--overwrite", "--check"]) == 2
    assert json.loads((tmp_path / "out/datalist.json").read_text())["seed"] == 1
    assert main([*airogs, "--allow-missing", "--seed", "2", "--overwrite"]) == 0


@pytest.mark.parametrize("source", ["chexpert", "crcdx"])
def test_other_downloads_have_verbs_of_their_own(source, tmp_path, capsys):
    assert main(["prepare", source, "--root", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert {"chexpert": "CheXpert", "crcdx": "CRC-DX"}[source] in capsys.readouterr().err


def test_check_is_accepted_for_folders(folders):
    arguments = ["prepare", "folder", "--root", str(folders / "root"), "--output", str(folders / "out")]
    assert main([*arguments, "--check"]) == 0
    assert main(arguments) == 0


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
        ["export", "--set", "image_size"],
        ["compare", "--reference", "r", "--output", "o"],
        ["compare", "--reference", "r", "--output", "o", "--images", "no_name"],
        ["compare", "--reference", "r", "--output", "o", "--images", "a=b", "--size", "64"],
        ["weights", "fetch"],
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


def test_reader_that_closes_the_pipe_is_not_an_error():
    command = [sys.executable, "-m", "medfusion_monai", "weights", "list"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 141)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prepare", "folder", "--root", "~/x", "--output", "o"], "argument --root: path '~/x' begins with '~'"),
        (["prepare", "folder", "--root", "x", "--output", "a#b"], "argument --output: path 'a#b' contains '#'"),
        (["prepare", "phantoms", "--output", ""], "argument --output: path must be a path, received ''"),
        (["compare", "--reference", "r", "--images", "a=~/b", "--output", "o"], "path '~/b' begins with '~'"),
        (["export", "--model-file", "~/m.pt", "--output", "o"], "argument --model-file: path '~/m.pt'"),
    ],
)
def test_paths_that_would_become_others_are_refused(arguments, words, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert words in capsys.readouterr().err


def test_mistyped_column_is_reported_before_pytorch_is_loaded(tmp_path):
    (tmp_path / "table.csv").write_text("image,finding\na.png,x\n")
    command = ["prepare", "folder", "--root", str(tmp_path), "--csv", str(tmp_path / "table.csv")]
    command += ["--image-column", "image", "--label-column", "findng", "--output", str(tmp_path / "data")]
    code = f"import sys; from medfusion_monai.cli import main; print(main({command!r})); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["2", "False"]
    assert "close to ['finding']" in result.stderr
