"""CRC-DX: classes by folder, patients by barcode, and the download's own test part."""

import pytest
from pictures import picture
from PIL import Image

from medfusion_monai.data.datalist import DataError, read_datalist
from medfusion_monai.data.preparing.crcdx import CLASS_NAMES, prepare_crcdx

LAYOUTS = [
    ("", "MSIMUT", "MSS"),
    ("", "MSIH", "nonMSIH"),
    ("tiles/deep", "MSIH", "nonMSIH"),
    ("CRC_DX_TRAIN/CRC_DX_TRAIN", "MSIMUT", "MSS"),
]


def _tiles(folder, patients, tiles=2):
    folder.mkdir(parents=True, exist_ok=True)
    for patient in patients:
        for index in range(tiles):
            name = f"blk-{'ABCDEFGHIJK'}{'ABCDEFGH'[index]}-TCGA-A6-{patient:04d}-01Z-00-DX1.png"
            Image.fromarray(picture((patient % 256, index, 0))).save(folder / name)


def _download(root, train="TRAIN", test="TEST"):
    """Ten patients per class for training and three for testing, two tiles each."""
    for start, name in ((0, "MSIMUT"), (100, "MSS")):
        _tiles(root / train / name, range(start, start + 10))
        _tiles(root / test / name, range(start + 50, start + 53))
    return root


@pytest.mark.parametrize(("above", "instable", "stable"), LAYOUTS)
def test_class_folders_are_found_at_any_depth(tmp_path, above, instable, stable):
    _tiles(tmp_path / "data" / above / instable, range(10))
    _tiles(tmp_path / "data" / above / stable, range(10, 30))
    document = prepare_crcdx(tmp_path / "data", tmp_path / "out")
    assert document["class_names"] == ["msi", "mss"]
    assert document["counts"]["all"] == {"images": {"msi": 20, "mss": 40}, "patients": 30}
    assert [document["counts"][split]["patients"] for split in ("training", "validation", "test")] == [24, 3, 3]
    items = read_datalist(tmp_path / "out", "training", CLASS_NAMES)
    assert all((f"/{instable}/" in item["image"]) == (item["label"] == 0) for item in items)


def test_patient_is_the_barcode(tmp_path):
    _tiles(tmp_path / "MSIH", range(3))
    _tiles(tmp_path / "nonMSIH", range(3, 6))
    document = prepare_crcdx(tmp_path, tmp_path / "out")
    assert {item["patient"] for item in document["training"] + document["test"]} <= {
        f"TCGA-A6-000{n}" for n in range(6)
    }
    assert all(item["patient"] in item["image"] for item in document["training"])


@pytest.mark.parametrize(
    ("train", "test"), [("TRAIN", "TEST"), ("CRC_DX_TRAIN/CRC_DX_TRAIN", "CRC_DX_TEST/CRC_DX_TEST"), ("train", "test")]
)
def test_test_part_of_the_download_is_the_test_split(tmp_path, train, test):
    fractions = (0.4, 0.1, 0.5)  # 4 to 1 between training and validation
    document = prepare_crcdx(_download(tmp_path / "data", train, test), tmp_path / "out", fractions)
    assert all(f"/{test}/" in item["image"] for item in document["test"])
    assert {item["image"].split("/")[-2] for item in document["test"]} == {"MSIMUT", "MSS"}
    assert [document["counts"][split]["patients"] for split in ("training", "validation", "test")] == [16, 4, 6]
    assert "test as in the download" in document["source"]
    assert document["counts"]["paper"]["test"]["images"] == {"msi": 5223, "mss": 27138}


def test_reference_is_drawn_beside_the_test_part(tmp_path):
    root = _download(tmp_path / "data")
    _tiles(root / "TRAIN/MSS", range(110, 115))
    document = prepare_crcdx(root, tmp_path / "out")
    assert document["counts"]["reference"]["images"] == {"msi": 20, "mss": 20}
    assert all("/TRAIN/" in item["image"] for item in document["reference"])


def test_patient_in_both_parts_is_refused_by_name(tmp_path):
    root = _download(tmp_path / "data")
    _tiles(root / "TEST/MSIMUT", [4, 7])
    with pytest.raises(DataError, match="2 patient.*TCGA-A6-0004, TCGA-A6-0007"):
        prepare_crcdx(root, tmp_path / "out")


def test_test_part_that_lacks_a_class_is_refused(tmp_path):
    root = _download(tmp_path / "data")
    for image in (root / "TEST/MSS").iterdir():
        image.unlink()
    with pytest.raises(DataError, match="class 'mss': images are in only one"):
        prepare_crcdx(root, tmp_path / "out")


def test_test_part_alone_is_refused_unless_it_is_the_root(tmp_path):
    root = _download(tmp_path / "data", train="elsewhere/../../other")
    with pytest.raises(DataError, match="no training folder"):
        prepare_crcdx(root, tmp_path / "out")
    document = prepare_crcdx(root / "TEST", tmp_path / "out")
    assert [document["counts"][split]["patients"] for split in ("training", "validation", "test")] == [2, 2, 2]


def test_class_folder_outside_both_parts_is_refused(tmp_path):
    root = _download(tmp_path / "data")
    _tiles(root / "MSS", [300])
    with pytest.raises(DataError, match="outside its training and test folders"):
        prepare_crcdx(root, tmp_path / "out")


def test_fractions_without_training_and_validation_are_refused(tmp_path):
    with pytest.raises(DataError, match="own test split"):
        prepare_crcdx(_download(tmp_path / "data"), tmp_path / "out", fractions=(0, 0, 1))


def test_names_without_a_barcode_are_listed(tmp_path):
    root = _download(tmp_path / "data")
    (root / "TRAIN/MSS/tile_17.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 images.*no TCGA barcode in their names:\n  TRAIN/MSS/tile_17.png"):
        prepare_crcdx(root, tmp_path / "out")


def test_images_in_other_folders_are_warned_of(tmp_path, caplog):
    root = _download(tmp_path / "data")
    _tiles(root / "TRAIN/normal", [1])
    assert prepare_crcdx(root, tmp_path / "out")["counts"]["all"]["images"] == {"msi": 26, "mss": 26}
    assert "2 images outside the class folders" in caplog.text


def test_patient_of_both_classes_is_warned_of(tmp_path, caplog):
    root = _download(tmp_path / "data")
    _tiles(root / "TRAIN/MSS", [5])
    prepare_crcdx(root, tmp_path / "out")
    assert "1 patients have images of both classes, first TCGA-A6-0005" in caplog.text


def test_folder_without_class_folders_is_refused(tmp_path):
    with pytest.raises(DataError, match="no images in folders MSIMUT, MSIH, MSS or nonMSIH"):
        prepare_crcdx(tmp_path, tmp_path / "out")


def test_link_that_leads_nowhere_is_a_missing_image(tmp_path):
    root = _download(tmp_path / "data")
    (root / "TRAIN/MSS/blk-AAAAAAAAAAAA-TCGA-A6-0101-01Z-00-DX1.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match="1 of 53 images do not exist"):
        prepare_crcdx(root, tmp_path / "out")
    assert prepare_crcdx(root, tmp_path / "out", allow_missing=True)["counts"]["missing"] == 1


def test_check_decodes(tmp_path):
    root = _download(tmp_path / "data")
    next((root / "TEST/MSS").iterdir()).write_bytes(b"no image")
    with pytest.raises(DataError, match="1 of 52 images cannot be used"):
        prepare_crcdx(root, tmp_path / "out", check=True)


def test_output_inside_the_root_and_a_linked_root_point_at_the_images(tmp_path):
    root = _download(tmp_path / "data")
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "far" / "away" / "link").symlink_to(root)
    prepare_crcdx(tmp_path / "far/away/link", root / "out")
    assert len(read_datalist(root / "out", "test", CLASS_NAMES)) == 12
    first = prepare_crcdx(root, root)
    assert first["test"][0]["image"].startswith("TEST/MSIMUT/")
    assert len(read_datalist(root, "test", CLASS_NAMES)) == 12
