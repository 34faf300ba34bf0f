"""AIROGS: labels of the table are matched with images at any depth below the root."""

import pytest
from pictures import picture
from PIL import Image

from medfusion_monai.data.datalist import DataError, read_datalist
from medfusion_monai.data.preparing.airogs import CLASS_NAMES, prepare_airogs


def _image(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture((value, 0, 255 - value))).save(path)


def _table(root, rows, header="challenge_id,class"):
    (root / "train_labels.csv").write_text("\n".join([header, *rows]) + "\n")


@pytest.fixture
def download(tmp_path):
    """Six parts as in the download: thirty images without and ten with referable glaucoma."""
    root = tmp_path / "airogs"
    rows = []
    for number in range(40):
        _image(root / str(number % 6) / f"TRAIN{number:06d}.jpg", number)
        rows.append(f"TRAIN{number:06d},{'RG' if number < 10 else 'NRG'}")
    _table(root, rows)
    return root


def _items(document):
    return [item for split in ("training", "validation", "test") for item in document[split]]


def test_referable_glaucoma_is_class_one(download, tmp_path):
    document = prepare_airogs(download, tmp_path / "out")
    assert document["class_names"] == ["no_referable_glaucoma", "referable_glaucoma"]
    assert document["counts"]["all"]["images"] == {"no_referable_glaucoma": 30, "referable_glaucoma": 10}
    assert all(item["label"] == (int(item["patient"][5:]) < 10) for item in _items(document))
    assert document["class_shares"] == {"no_referable_glaucoma": 0.75, "referable_glaucoma": 0.25}


def test_images_are_pointed_at_in_their_parts(download, tmp_path):
    prepare_airogs(download, tmp_path / "out")
    items = read_datalist(tmp_path / "out", "training", CLASS_NAMES)
    expected = [str(download.resolve() / str(int(i["patient"][5:]) % 6) / f"{i['patient']}.jpg") for i in items]
    assert [item["image"] for item in items] == expected


def test_unknown_patients_are_said_in_a_warning_and_in_the_source(download, tmp_path, caplog):
    document = prepare_airogs(download, tmp_path / "out")
    assert "each image counts as its own patient" in caplog.text
    assert "patients unknown" in document["source"]
    assert document["counts"]["all"]["patients"] == 40


def test_reference_has_as_many_images_of_both_classes(download, tmp_path):
    document = prepare_airogs(download, tmp_path / "out")
    assert document["counts"]["reference"]["images"] == {"no_referable_glaucoma": 10, "referable_glaucoma": 10}
    assert document["counts"]["paper"]["reference"]["images"] == dict.fromkeys(CLASS_NAMES, 3270)
    assert len(read_datalist(tmp_path / "out", "reference", CLASS_NAMES)) == 20


def test_reference_is_of_the_papers_size_at_most(download, tmp_path, monkeypatch):
    monkeypatch.setattr("medfusion_monai.data.preparing.airogs.REFERENCE_SIZE", 4)
    document = prepare_airogs(download, tmp_path / "out")
    assert [item["label"] for item in document["reference"]].count(1) == 4
    assert len(document["reference"]) == 8


def test_other_suffixes_and_folders_are_found(download, tmp_path):
    (download / "0/TRAIN000000.jpg").unlink()
    (download / "1/TRAIN000001.jpg").unlink()
    _image(download / "img/TRAIN000000.png")
    _image(download / "img/deep/TRAIN000001.JPEG")
    images = {item["patient"]: item["image"] for item in _items(prepare_airogs(download, tmp_path / "out"))}
    assert images["TRAIN000000"].endswith("airogs/img/TRAIN000000.png")
    assert images["TRAIN000001"].endswith("airogs/img/deep/TRAIN000001.JPEG")


def test_image_found_twice_is_refused(download, tmp_path):
    _image(download / "img/TRAIN000007.png")
    with pytest.raises(DataError, match="'TRAIN000007' twice: 1/TRAIN000007.jpg and img/TRAIN000007.png"):
        prepare_airogs(download, tmp_path / "out")


def test_images_without_a_row_are_counted_and_hidden_files_are_not(download, tmp_path, caplog):
    _image(download / "0/other.jpg")
    (download / "0/._TRAIN000000.jpg").write_bytes(b"left by a system")
    assert len(_items(prepare_airogs(download, tmp_path / "out"))) == 40
    assert "1 images below" in caplog.text


def test_part_that_is_a_link_to_another_disk_is_followed(download, tmp_path):
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (download / "2").rename(tmp_path / "disk/deep/2")
    (download / "2").symlink_to(tmp_path / "disk/deep/2")
    document = prepare_airogs(download, tmp_path / "out")
    total = sum(len(read_datalist(tmp_path / "out", split)) for split in ("training", "validation", "test"))
    assert total == document["counts"]["all"]["patients"] == 40


def test_links_in_circles_are_walked_once(download, tmp_path):
    (download / "0" / "back").symlink_to(download)
    assert len(_items(prepare_airogs(download, tmp_path / "out"))) == 40


def test_missing_images_are_an_error_unless_allowed(download, tmp_path):
    (download / "3/TRAIN000015.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 40 images do not exist:\n.*TRAIN000015.jpg"):
        prepare_airogs(download, tmp_path / "out")
    document = prepare_airogs(download, tmp_path / "out", allow_missing=True)
    assert document["counts"]["missing"] == 1
    assert len(_items(document)) == 39


def test_check_decodes_and_wants_colour(download, tmp_path):
    Image.fromarray(picture(0)).save(download / "0/TRAIN000000.jpg")
    with pytest.raises(DataError, match=r"1 of 40 images cannot be used:\n.*TRAIN000000.jpg: has 1 channel"):
        prepare_airogs(download, tmp_path / "out", check=True)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["a,RG", "b,XX"], "line 3: class is 'XX', but must be RG or NRG"),
        (["a,RG", "b"], "line 3: the row has 1 cells, the header 2"),
        (["a,RG", "b,"], "line 3: class is ''"),
        (["a,RG", ",NRG"], "line 3: challenge_id is ''"),
        (["a,RG", "b,NRG", "a,NRG"], "first 'a' in lines 2 and 4"),
    ],
)
def test_bad_rows_are_named_with_their_line(download, tmp_path, rows, said):
    _table(download, rows)
    with pytest.raises(DataError, match=said):
        prepare_airogs(download, tmp_path / "out")


def test_other_columns_are_named_with_near_ones(download, tmp_path):
    _table(download, ["a,RG"], header="challenge_ID,class")
    with pytest.raises(DataError, match=r"'challenge_id' is close to \['challenge_ID'\].*original AIROGS download"):
        prepare_airogs(download, tmp_path / "out")


def test_table_of_one_class_is_refused(download, tmp_path):
    _table(download, [f"TRAIN{number:06d},NRG" for number in range(10, 40)])
    with pytest.raises(DataError, match=r"\['referable_glaucoma'\] have no images"):
        prepare_airogs(download, tmp_path / "out")


def test_root_without_the_table_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"does not contain train_labels\.csv"):
        prepare_airogs(tmp_path, tmp_path / "out")
