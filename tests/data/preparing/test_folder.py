"""Folders and tables become datalists, or an error states what to correct."""

import csv
import importlib.resources
import json
import os
from pathlib import Path

import pytest
from pictures import picture
from PIL import Image

import medfusion_monai.data.preparing.folder as folder_module
from medfusion_monai.data.datalist import DataError, read_datalist
from medfusion_monai.data.preparing.folder import ImageRules, prepare_folder
from medfusion_monai.data.preparing.image_table import ImageTable

REAL_DATA = Path(os.environ.get("MEDFUSION_DATA", "../shared/data"))


def _image(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(value)).save(path)


@pytest.fixture
def folders(tmp_path):
    """Two classes of ten images, one of them in a sub-folder, and files of operating systems."""
    root = tmp_path / "root"
    for index in range(10):
        _image(root / "sick" / f"s{index}.png", index)
        _image(root / "healthy" / ("deep" if index == 0 else "") / f"h{index}.png", 100 + index)
    (root / "sick" / ".DS_Store").write_text("")
    (root / "README.txt").write_text("")
    return root


@pytest.fixture
def table(tmp_path):
    """Ten patients of two images each, one class per patient, one site of two left out."""
    root = tmp_path / "root"
    rows = []
    for patient in range(10):
        for index in range(2):
            name = f"images/{patient}_{index}.png"
            _image(root / name, patient + 100 * index)
            site = "a" if patient < 8 else "b"
            rows.append({"file": name, "finding": "pos" if patient % 2 else "neg", "patient": patient, "site": site})
    _write(tmp_path / "table.csv", rows)
    return tmp_path, rows


def _write(path, rows, delimiter=","):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def _from_table(folder, **changes):
    columns = {"path": folder / "table.csv", "image_column": "file", "label_column": "finding"}
    columns |= {"patient_column": "patient"}
    columns |= {name: changes.pop(name) for name in ImageTable.__dataclass_fields__ if name in changes}
    options = {"fractions": (0.6, 0.2, 0.2), "table": ImageTable(**columns), **changes}
    return prepare_folder(folder / "root", folder / "out", **options)


def _items(document):
    return document["training"] + document["validation"] + document["test"]


def test_sub_folders_are_the_classes_in_order_of_their_names(folders, tmp_path):
    document = prepare_folder(folders, tmp_path / "out")
    assert document["class_names"] == ["healthy", "sick"]
    assert document["counts"]["training"] == {"images": {"healthy": 8, "sick": 8}, "patients": 16}
    assert "each image its own patient" in document["source"]
    assert str(tmp_path) not in json.dumps(document)
    items = read_datalist(tmp_path / "out", "training", ["healthy", "sick"])
    assert all(Path(item["image"]).parts[len(folders.parts)] == ["healthy", "sick"][item["label"]] for item in items)


def test_classes_give_order_and_names(folders, tmp_path):
    document = prepare_folder(folders, tmp_path / "out", classes=["sick=ill", "healthy"])
    assert document["class_names"] == ["ill", "healthy"]
    assert all(("sick" in item["image"]) == (item["label"] == 0) for item in _items(document))


def test_equal_stems_in_two_folders_are_two_patients(folders, tmp_path):
    _image(folders / "healthy" / "s0.png", 200)
    patients = [item["patient"] for item in _items(prepare_folder(folders, tmp_path / "out"))]
    assert len(set(patients)) == 21
    assert {"h1", "healthy/s0.png", "sick/s0.png"} <= set(patients)


def test_output_inside_the_root_is_no_class(folders):
    first = prepare_folder(folders, folders / "out", copy=True)
    assert prepare_folder(folders, folders / "out", copy=True) == first


@pytest.mark.parametrize(("output", "copy"), [("sick", False), ("sick/out", False), ("new/out", False), ("", True)])
def test_output_that_would_hide_or_become_a_class_is_refused(folders, output, copy):
    before = sorted(folders.rglob("*"))
    with pytest.raises(DataError, match="is among the classes"):
        prepare_folder(folders, folders / output, copy=copy)
    assert sorted(folders.rglob("*")) == before


def test_output_that_is_the_root_gives_the_same_twice(folders):
    assert prepare_folder(folders, folders) == prepare_folder(folders, folders)


def test_entries_that_are_no_class_are_named(folders, tmp_path, caplog):
    (folders / "empty").mkdir()
    assert prepare_folder(folders, tmp_path / "out")["class_names"] == ["healthy", "sick"]
    assert [line.strip() for line in caplog.messages[0].splitlines()[1:]] == ["README.txt", "empty"]


def test_hidden_folders_are_passed_over_and_linked_ones_followed(folders, tmp_path):
    _image(folders / "sick" / ".ipynb_checkpoints" / "s0-checkpoint.png", 50)
    _image(tmp_path / "elsewhere" / "s10.png", 60)
    (folders / "sick" / "more").symlink_to(tmp_path / "elsewhere")
    document = prepare_folder(folders, tmp_path / "out")
    names = {Path(item["image"]).name for split in ("training", "validation", "test") for item in document[split]}
    assert {name for name in names if name.startswith("s")} == {f"s{index}.png" for index in range(11)}


def test_link_that_leads_nowhere_is_an_unreadable_image(folders, tmp_path):
    (folders / "sick" / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"gone\.png: does not exist"):
        prepare_folder(folders, tmp_path / "out")


def test_bad_fractions_are_refused_before_decoding(folders, tmp_path, nothing_is_decoded):
    with pytest.raises(DataError, match="sum to 1"):
        prepare_folder(folders, tmp_path / "out", fractions=(0.8, 0.1, 0.2), rules=ImageRules(skip_unreadable=True))


def test_root_that_cannot_be_listed_is_refused(folders, tmp_path, monkeypatch):
    def iterdir(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(DataError, match="cannot be listed: Permission denied"):
        prepare_folder(folders, tmp_path / "out")


@pytest.mark.parametrize("option", ["root", "output", "table"])
def test_path_that_is_too_long_is_named(folders, tmp_path, option):
    path = folders / ("x" * 300)
    arguments = {"root": folders, "output": tmp_path / "out", option: ImageTable(path) if option == "table" else path}
    with pytest.raises(ValueError, match="xxx"):
        prepare_folder(**arguments)


def test_folder_without_classes_is_refused(tmp_path):
    _image(tmp_path / "a.png")
    with pytest.raises(DataError, match="one sub-folder per class"):
        prepare_folder(tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="is not a folder"):
        prepare_folder(tmp_path / "nowhere", tmp_path / "out")


def test_table_keeps_patients_together_and_rows_of_the_site(table):
    folder, _ = table
    document = _from_table(folder, where={"site": ["a"]}, fractions=(0.5, 0.25, 0.25))
    assert len(_items(document)) == 16
    assert [document["counts"][split]["patients"] for split in ("training", "validation", "test")] == [4, 2, 2]
    assert len(read_datalist(folder / "out", "training")) == 8
    assert "site=a" in document["source"]


def test_several_values_of_a_column_are_alternatives(table):
    document = _from_table(table[0], where={"site": ["b", "a"], "finding": ["pos", "neg"]})
    assert len(_items(document)) == 20
    assert "site=b or a, finding=pos or neg" in document["source"]
    with pytest.raises(DataError, match="none of 20 rows has site=b or c, patient=1"):
        _from_table(table[0], where={"site": ["b", "c"], "patient": ["1"]})


@pytest.fixture
def listing(table):
    """The table with label lists, one row per finding: patients 0 to 3 have both findings, 9 another one."""
    folder, rows = table
    rows = [{**row, "finding": f"{row['finding']}|x" if row["patient"] < 9 else "other"} for row in rows]
    more = [{**row, "finding": "neg" if row["patient"] % 2 else "pos"} for row in rows if row["patient"] < 4]
    _write(folder / "table.csv", [*rows, *more])
    return folder


def test_images_get_the_one_chosen_class_of_their_lists(listing):
    options = {"label_separator": "|", "fractions": (1, 0, 0)}
    document = _from_table(listing, classes=["pos=sick", "neg=well"], **options)
    names = {item["image"].rpartition("/")[2]: document["class_names"][item["label"]] for item in _items(document)}
    expected = {f"{patient}_{index}.png" for patient in (4, 5, 6, 7, 8) for index in (0, 1)}
    assert names == {name: "sick" if int(name[0]) % 2 else "well" for name in expected}
    assert (document["counts"]["unlisted"], document["counts"]["ambiguous"]) == (2, 8)
    assert "labels separated by '|', images of several classes left out" in document["source"]
    with pytest.raises(DataError, match="Pass them as --classes"):
        _from_table(listing, **options)


def test_suffix_is_added_to_the_names_of_images(table):
    folder, rows = table
    expected = _from_table(folder)
    _write(folder / "table.csv", [{**row, "file": row["file"].removesuffix(".png")} for row in rows])
    assert _from_table(folder, image_suffix=".png") == expected


def test_sub_folders_are_chosen(folders, tmp_path, caplog):
    _image(folders / "other" / "o.png", 240)
    document = prepare_folder(folders, tmp_path / "out", folders=["sick", "healthy"])
    assert document["class_names"] == ["healthy", "sick"]
    assert "of sick, healthy" in document["source"]
    assert "README" not in caplog.text
    with pytest.raises(DataError, match=r"no sub-folders \['ill'\]; present: \['healthy', 'other', 'sick'\]"):
        prepare_folder(folders, tmp_path / "out", folders=["ill"])


def test_class_with_too_few_patients_is_named(folders, tmp_path):
    for path in sorted((folders / "sick").glob("*.png"))[2:]:
        path.unlink()
    with pytest.raises(DataError, match="class 'ill' has 2 patient"):
        prepare_folder(folders, tmp_path / "out", classes=["healthy", "sick=ill"])


def test_semicolons_of_a_spreadsheet_are_understood(table):
    folder, rows = table
    expected = _from_table(folder)
    _write(folder / "table.csv", rows, delimiter=";")
    assert _from_table(folder) == expected


def test_missing_columns_are_listed_with_near_names(table):
    with pytest.raises(DataError, match=r"\['findings'\] are missing; present: \['file'.*close to \['finding'\]"):
        _from_table(table[0], label_column="findings")


def test_column_that_is_there_twice_is_refused(table):
    folder, _ = table
    text = (folder / "table.csv").read_text()
    (folder / "table.csv").write_text(text.replace("file,finding,patient,site", "file,finding,patient,finding"))
    with pytest.raises(DataError, match=r"\['finding'\] occur more than once"):
        _from_table(folder)


def test_where_without_a_match_is_refused(table):
    with pytest.raises(DataError, match="none of 20 rows has site=z"):
        _from_table(table[0], where={"site": ["z"]})


def test_values_outside_the_classes_are_counted(table):
    with pytest.raises(DataError, match=r"'pos' \(10 images\)"):
        _from_table(table[0], classes=["neg"])


def test_class_without_images_and_repeated_class_are_refused(table):
    with pytest.raises(DataError, match=r"\['unknown'\] have no images"):
        _from_table(table[0], classes=["neg", "pos", "unknown"])
    with pytest.raises(DataError, match="once"):
        _from_table(table[0], classes=["neg=x", "pos=x"])


def test_row_outside_the_root_and_repeated_row_are_refused(table):
    folder, rows = table
    _write(folder / "table.csv", [*rows, {**rows[0], "file": "../../etc/passwd"}])
    with pytest.raises(DataError, match="outside root"):
        _from_table(folder)
    _write(folder / "table.csv", [*rows, rows[0]])
    with pytest.raises(DataError, match="more than one row"):
        _from_table(folder)


def test_empty_cell_is_refused(table):
    folder, rows = table
    _write(folder / "table.csv", [*rows[:-1], {**rows[-1], "patient": " "}])
    with pytest.raises(DataError, match="'patient' is empty in 1 of 20"):
        _from_table(folder)


def test_table_that_is_missing_or_no_text_is_refused(table):
    folder, _ = table
    with pytest.raises(DataError, match="cannot be opened"):
        _from_table(folder, path=folder / "other.csv")
    (folder / "table.csv").write_bytes(b"file,finding\n\xff\xfe\x00,1\n")
    with pytest.raises(DataError, match="UTF-8"):
        _from_table(folder)


def test_unreadable_images_stop_or_are_counted(table):
    folder, _ = table
    (folder / "root/images/0_0.png").unlink()
    (folder / "root/images/1_0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="2 of 20 images cannot be used") as caught:
        _from_table(folder)
    assert "0_0.png: does not exist" in str(caught.value)
    assert "1_0.png: is not an image" in str(caught.value)
    assert not (folder / "out").exists()
    document = _from_table(folder, rules=ImageRules(skip_unreadable=True))
    assert document["counts"]["skipped"] == 2
    assert len(_items(document)) == 18


def test_class_that_loses_all_its_images_is_refused(folders, tmp_path):
    for path in (folders / "sick").glob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"classes \['sick'\] have no images left: 10 images"):
        prepare_folder(folders, tmp_path / "out", rules=ImageRules(skip_unreadable=True))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def nothing_is_decoded(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("images were decoded")

    monkeypatch.setattr(folder_module, "inspect_images", fail)


def test_output_that_cannot_be_written_is_refused_before_decoding(folders, tmp_path, nothing_is_decoded):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="file is a file"):
        prepare_folder(folders, tmp_path / "file" / "out")


def test_read_only_output_is_refused_before_decoding(folders, tmp_path, monkeypatch, nothing_is_decoded):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(ValueError, match="out cannot be written"):
        prepare_folder(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_datalist_is_refused_before_decoding(folders, tmp_path, request):
    prepare_folder(folders, tmp_path / "out")
    request.getfixturevalue("nothing_is_decoded")
    with pytest.raises(DataError, match="--overwrite"):
        prepare_folder(folders, tmp_path / "out", seed=1)


def test_missing_patients_are_warned_of(table, caplog):
    _from_table(table[0])
    assert not [record for record in caplog.records if record.levelname == "WARNING"], caplog.text
    _from_table(table[0], patient_column=None, overwrite=True)
    assert "images of one patient may be in training and test" in caplog.text


def test_gray_images_for_a_colour_bundle_stop(table):
    with pytest.raises(DataError, match="needs 3"):
        _from_table(table[0], rules=ImageRules(channels=3))


def test_copied_images_make_the_output_independent(table):
    folder, _ = table
    _from_table(folder, copy=True)
    (folder / "root").rename(folder / "gone")
    (folder / "out").rename(folder / "moved")
    items = read_datalist(folder / "moved", "training")
    assert all(str(folder.resolve() / "moved" / "images") in item["image"] for item in items)


def test_other_datalist_is_replaced_only_when_asked(table):
    folder, _ = table
    first = _from_table(folder)
    assert _from_table(folder) == first
    with pytest.raises(DataError, match="--overwrite"):
        _from_table(folder, seed=1)
    assert json.loads((folder / "out/datalist.json").read_text()) == first
    assert _from_table(folder, seed=1, overwrite=True) != first


def _home(document):
    """The split of each image, by its file name."""
    splits = ("training", "validation", "test")
    return {Path(item["image"]).name: split for split in splits for item in document[split]}


def test_equal_images_are_counted_and_stay_in_one_split(table, caplog):
    folder, _ = table
    image = Image.open(folder / "root/images/0_1.png")
    image.save(folder / "root/images/6_0.png", compress_level=0)
    Image.merge("RGB", [Image.open(folder / "root/images/6_1.png")] * 3).save(folder / "root/images/4_1.png")
    for seed in range(8):
        document = _from_table(folder, seed=seed, overwrite=True)
        home = _home(document)
        assert len({home[f"{patient}_{index}.png"] for patient in (0, 4, 6) for index in (0, 1)}) == 1
    assert document["counts"]["duplicates"] == 2
    assert "2 image(s) repeat the pixels of another one" in caplog.text
    assert {item["patient"] for item in _items(document)} == {str(patient) for patient in range(10)}
    assert _from_table(folder, seed=seed) == document  # the same command again changes nothing
    with pytest.raises(DataError, match="--overwrite"):
        _from_table(folder, seed=seed + 1)


def test_equal_images_with_two_labels_are_refused(table):
    folder, _ = table
    Image.open(folder / "root/images/0_1.png").save(folder / "root/images/1_0.png")
    with pytest.raises(DataError, match=r"0_1.png \(neg\) = .*1_0.png \(pos\)"):
        _from_table(folder)
    assert not (folder / "out").exists()


@pytest.fixture
def given(table):
    """The table with splits by patient: six for training, two each for validation and test."""
    folder, rows = table
    names = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    rows = [{**row, "fold": names[row["patient"]]} for row in rows]
    _write(folder / "table.csv", rows)
    return folder, rows


def test_given_splits_are_kept(given):
    folder, rows = given
    document = _from_table(folder, split_column="fold")
    expected = {"train": "training", "val": "validation", "test": "test"}
    assert _home(document) == {Path(row["file"]).name: expected[row["fold"]] for row in rows}
    assert "splits by 'fold'" in document["source"]


def test_patient_and_equal_images_in_two_given_splits_are_refused(given):
    folder, rows = given
    _write(folder / "table.csv", [{**rows[0], "fold": "test"}, *rows[1:]])
    with pytest.raises(DataError, match="'0' in test and training"):
        _from_table(folder, split_column="fold")
    _write(folder / "table.csv", rows)
    Image.open(folder / "root/images/0_1.png").save(folder / "root/images/8_0.png")
    with pytest.raises(DataError, match=r"0_1.png \(training\) = .*8_0.png \(test\)"):
        _from_table(folder, split_column="fold")


def test_modalities_choose_the_dicom_files(folders, tmp_path):
    for index, name in enumerate(("CT_small.dcm", "MR_small.dcm")):
        content = (importlib.resources.files("pydicom") / "data" / "test_files" / name).read_bytes()
        (folders / ("sick", "healthy")[index] / name).write_bytes(content)
    with pytest.raises(DataError, match="2 of 22 images cannot be used"):
        prepare_folder(folders, tmp_path / "out")
    with pytest.raises(ValueError, match="modalities are 'CT'"):
        prepare_folder(folders, tmp_path / "out", rules=ImageRules(modalities="CT"))
    document = prepare_folder(folders, tmp_path / "out", rules=ImageRules(modalities=["CT"], skip_unreadable=True))
    assert document["counts"]["skipped"] == 1
    assert sum(item["image"].endswith("CT_small.dcm") for item in _items(document)) == 1


def test_real_radiographs_of_one_subset_are_prepared(tmp_path):
    root = REAL_DATA / "cxr"
    if not (root / "labels.csv").is_file():
        pytest.skip(f"real images are not at {root}: set MEDFUSION_DATA")
    document = prepare_folder(
        root,
        tmp_path,
        ImageTable(
            root / "labels.csv", image_column="filename", patient_column="patient_id", where={"subset": ["nih128"]}
        ),
        classes=["no_finding", "cardiomegaly"],
        rules=ImageRules(channels=1),
    )
    assert len(_items(document)) == 557
    assert sum(document["counts"][split]["patients"] for split in ("training", "validation", "test")) == 452
    assert len(read_datalist(tmp_path, "test", ["no_finding", "cardiomegaly"])) == len(document["test"])


@pytest.mark.parametrize(
    ("root", "output"), [("~/images", "out"), ("", "out"), ("r", "a#b"), ("r", "~/out"), ("r", "")]
)
def test_paths_that_would_become_others_are_refused(root, output):
    with pytest.raises(ValueError, match=r"^(root|output) .*(must be a path|begins with|contains '#')"):
        prepare_folder(root, output)


def test_class_whose_name_configs_alter_can_be_renamed(folders, tmp_path):
    (folders / "sick").rename(folders / "sick#1")
    with pytest.raises(DataError, match=r"class_names contains \['sick#1'\]"):
        prepare_folder(folders, tmp_path / "out")
    assert prepare_folder(folders, tmp_path / "out", classes=["healthy", "sick#1=sick"])["class_names"][1] == "sick"
