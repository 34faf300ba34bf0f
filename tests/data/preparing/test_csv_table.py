"""Tables are read as they were meant, or an error names the line."""

import os
import re

import pytest

from medfusion_monai.data.preparing.airogs import read_airogs_table
from medfusion_monai.data.preparing.chexpert import read_chexpert_table
from medfusion_monai.data.preparing.csv_table import read_columns
from medfusion_monai.data.preparing.splits import DataError

TABLE = "image,label,patient\n" + "".join(f"{number}.png,sick,p{number}\n" for number in range(40))
EXPECTED = [{"image": f"{number}.png", "patient": f"p{number}"} for number in range(40)]


def _read(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_columns(path, ["image", "patient"], "Correct --csv.")[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends_of_spreadsheets_are_read(tmp_path, encoding, end):
    assert _read(tmp_path / "a.csv", TABLE.replace("\n", end).encode(encoding)) == EXPECTED


@pytest.mark.parametrize("first", ["", "sep=;\n", "sep=;\r\n", '"sep=;"\n'])
def test_first_line_of_excel_states_the_separator(tmp_path, first):
    assert _read(tmp_path / "a.csv", first + TABLE.replace(",", ";")) == EXPECTED
    with pytest.raises(DataError, match=f"line {42 + bool(first)}: the row has 2 cells"):
        _read(tmp_path / "a.csv", first + TABLE.replace(",", ";") + "x;y\n")


def test_separators_within_quoted_names_of_columns_are_not_counted(tmp_path):
    table = TABLE.replace(",", ";").replace("label", '"a,b,c,d"')
    assert _read(tmp_path / "a.csv", table) == EXPECTED


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("3.png,sick,left,p3", "line 5: the row has 4 cells, the header 3. Quote cells that contain ','"),
        ("3.png,sick,p3,", "line 5: the row has 4 cells"),
        ("3.png,sick", "line 5: the row has 2 cells"),
        ('3.png,"sick,p3', "line 5: unexpected end of data. Close or remove the quotes"),
        ('3.png,"si"ck,p3', "line 5: .*expected after"),
        ("3.png,s\0ick,p3", "line 5 is not UTF-8 text: a zero character"),
        (b"3.png,s\xfcck,p3", "line 5 is not UTF-8 text.*0xfc"),
    ],
)
def test_damaged_row_is_refused_with_its_line(tmp_path, row, said):
    broken = TABLE.encode().replace(b"3.png,sick,p3", row.encode() if isinstance(row, str) else row, 1)
    with pytest.raises(DataError, match=re.escape("a.csv', ") + said):
        _read(tmp_path / "a.csv", broken)


def test_two_stray_quotes_that_swallow_rows_are_refused(tmp_path):
    broken = TABLE.replace("3.png,sick", '3.png,"sick', 1).replace("21.png,sick", '21.png,sick"', 1)
    with pytest.raises(DataError, match=r"line 5: a quoted cell spans 19 lines"):
        _read(tmp_path / "a.csv", broken)


def test_quoted_cell_of_several_lines_is_read(tmp_path):
    assert _read(tmp_path / "a.csv", TABLE.replace("sick", '"sick, ""very""\nsick"')) == EXPECTED


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_table_that_is_not_a_file_is_refused(tmp_path, kind):
    path = tmp_path / "a.csv"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(DataError, match=f"is a {kind}.*Correct --csv"):
        read_columns(path, ["image"], "Correct --csv.")


def test_all_readers_of_tables_refuse_a_shifted_row(tmp_path):
    (tmp_path / "airogs.csv").write_text("challenge_id,class\nTRAIN1,RG,NRG\n")
    with pytest.raises(DataError, match="line 2: the row has 3 cells"):
        read_airogs_table(tmp_path / "airogs.csv")
    row = "CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg,Frontal,x,1.0"
    (tmp_path / "chexpert.csv").write_text(f"Path,Frontal/Lateral,Cardiomegaly\n{row}\n")
    with pytest.raises(DataError, match="line 2: the row has 4 cells"):
        read_chexpert_table(tmp_path / "chexpert.csv")


@pytest.mark.parametrize(
    ("name", "header", "near"),
    [("image", "filename,age", None), ("findings", "file,finding", "finding"), ("Image", "image,age", "image")],
)
def test_only_a_misspelling_is_called_near(tmp_path, name, header, near):
    (tmp_path / "a.csv").write_text(header + "\n")
    with pytest.raises(DataError) as caught:
        read_columns(tmp_path / "a.csv", [name], "Correct it.")
    assert ("is close to" in str(caught.value)) == (near is not None)
    assert near is None or f"is close to ['{near}']" in str(caught.value)
