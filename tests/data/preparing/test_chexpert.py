"""CheXpert's table: rows that are used, their labels, and rows that are refused."""

import json
import random

import pytest
from pictures import picture
from PIL import Image

from medfusion_monai.data.datalist import DataError, read_datalist
from medfusion_monai.data.preparing.chexpert import CLASS_NAMES, prepare_chexpert, read_chexpert_table
from medfusion_monai.data.preparing.download import draw_reference
from medfusion_monai.data.preparing.new_datalist import count_images

HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices\n"
)
SMALL = "CheXpert-v1.0-small"


def _row(patient, finding, view="Frontal", prefix=SMALL, study=1, sex="Female", path=None):
    path = path or f"{prefix}/train/patient{patient:05d}/study{study}/view1_{view.lower()}.jpg"
    return f"{path},{sex},60,{view},AP,,,{finding},,,,,,,1.0,,,,\n"


def _write(folder, rows, header=HEADER):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.csv").write_text(header + "".join(rows))


def _download(root, rows):
    """A table and its images below root, in the folder of the first row."""
    _write(root / rows[0].split("/")[0], rows)
    for number, row in enumerate(rows):
        image = _image(root, row)
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number % 256)).save(image)
    return root


def _rows(prefix=SMALL):
    """Ten patients per value of the finding."""
    values = ("1.0", "0.0", "-1.0", "")
    return [
        _row(10 * group + number, value, prefix=prefix) for group, value in enumerate(values) for number in range(10)
    ]


def _image(root, row):
    return root / row.split(",")[0]


def _items(document):
    return [item for split in ("training", "validation", "test") for item in document[split]]


def test_uncertain_counts_as_cardiomegaly_and_blank_as_none(tmp_path):
    _write(tmp_path, [_row(1, "1.0"), _row(2, "0.0"), _row(3, "-1.0"), _row(4, ""), _row(5, "-1"), _row(6, " 0 ")])
    records, _ = read_chexpert_table(tmp_path / "train.csv")
    assert [record["label"] for record in records] == [1, 0, 1, 0, 1, 0]
    assert [record["comparable"] for record in records] == [True, True, False, False, False, True]


def test_lateral_views_are_left_out_and_unknown_sex_is_kept(tmp_path):
    _write(tmp_path, [_row(1, "1.0"), _row(1, "1.0", "Lateral"), _row(2, "0.0", sex="Unknown")])
    records, lateral = read_chexpert_table(tmp_path / "train.csv")
    assert [record["patient"] for record in records] == ["patient00001", "patient00002"]
    assert lateral == 1


@pytest.mark.parametrize("prefix", ["CheXpert-v1.0", SMALL])
@pytest.mark.parametrize("inside", [True, False])
def test_both_downloads_are_found_from_the_folder_and_from_above(tmp_path, prefix, inside):
    root = _download(tmp_path / "data", _rows(prefix))
    document = prepare_chexpert(root / prefix if inside else root, tmp_path / "out")
    assert document["class_names"] == ["no_cardiomegaly", "cardiomegaly"]
    assert document["counts"]["all"] == {"images": {"no_cardiomegaly": 20, "cardiomegaly": 20}, "patients": 40}
    items = read_datalist(tmp_path / "out", "training", CLASS_NAMES)
    assert all(item["image"].startswith(str(root.resolve() / prefix / "train" / item["patient"])) for item in items)


def test_two_downloads_in_one_folder_are_refused(tmp_path):
    for prefix in ("CheXpert-v1.0", SMALL):
        _write(tmp_path / prefix, _rows(prefix))
    with pytest.raises(DataError, match=r"\['CheXpert-v1.0', 'CheXpert-v1.0-small'\]. Pass one"):
        prepare_chexpert(tmp_path, tmp_path / "out")


def test_valid_csv_is_not_used(tmp_path):
    root = _download(tmp_path / "data", _rows())
    first = prepare_chexpert(root, tmp_path / "out")
    (root / SMALL / "valid.csv").write_text("no table")
    assert prepare_chexpert(root, tmp_path / "out") == first
    assert "valid.csv not used" in first["source"]


def test_reference_is_explicit_negatives_and_as_many_explicit_positives(tmp_path):
    rows = _rows()[3:]  # seven explicit positives, ten explicit negatives
    document = prepare_chexpert(_download(tmp_path / "data", rows), tmp_path / "out")
    reference = read_datalist(tmp_path / "out", "reference", CLASS_NAMES)
    assert [int(item["patient"][-2:]) // 10 for item in reference].count(0) == 7
    assert [int(item["patient"][-2:]) // 10 for item in reference].count(1) == 7
    assert document["counts"]["reference"]["images"] == {"no_cardiomegaly": 7, "cardiomegaly": 7}
    assert all(entry in _items(document) for entry in document["reference"])


def test_without_explicit_negatives_there_is_no_reference_and_a_warning(tmp_path, caplog):
    rows = [row for row in _rows() if ",0.0," not in row]
    document = prepare_chexpert(_download(tmp_path / "data", rows), tmp_path / "out")
    assert "reference" not in document
    assert "no reference batch" in caplog.text
    with pytest.raises(DataError, match="'reference' is missing"):
        read_datalist(tmp_path / "out", "reference", CLASS_NAMES)


def test_images_of_a_patient_stay_together(tmp_path):
    rows = [_row(number, "1.0" if number % 2 else "", study=study) for number in range(20) for study in (1, 2)]
    document = prepare_chexpert(_download(tmp_path / "data", rows), tmp_path / "out", fractions=(0.6, 0.2, 0.2))
    assert [document["counts"][split]["patients"] for split in ("training", "validation", "test")] == [12, 4, 4]
    assert [len(document[split]) for split in ("training", "validation", "test")] == [24, 8, 8]


def test_missing_images_are_listed_and_counted_or_left_out(tmp_path):
    root = _download(tmp_path / "data", _rows())
    gone = [_image(root, row) for row in _rows()[5:20]]
    for image in gone:
        image.unlink()
    with pytest.raises(DataError, match="15 of 40 images do not exist") as caught:
        prepare_chexpert(root, tmp_path / "out")
    assert str(caught.value).count("view1_frontal.jpg") == 10
    assert "and 5 more" in str(caught.value)
    assert "--allow-missing" in str(caught.value)
    assert not (tmp_path / "out").exists()
    document = prepare_chexpert(root, tmp_path / "out", allow_missing=True)
    assert document["counts"]["missing"] == 15
    assert document["counts"]["all"]["images"] == {"no_cardiomegaly": 10, "cardiomegaly": 15}
    assert len(_items(document)) == 25


def test_class_without_any_image_left_is_refused(tmp_path):
    root = _download(tmp_path / "data", _rows())
    for row in _rows():
        if ",AP,,,1.0," in row or ",AP,,,-1.0," in row:
            _image(root, row).unlink()
    with pytest.raises(DataError, match=r"\['cardiomegaly'\] have no images: 20 images found, 20 missing"):
        prepare_chexpert(root, tmp_path / "out", allow_missing=True)


def test_check_decodes_and_wants_gray(tmp_path):
    root = _download(tmp_path / "data", _rows())
    Image.fromarray(picture((200, 0, 0))).save(_image(root, _rows()[0]))
    _image(root, _rows()[1]).write_bytes(b"no image")
    with pytest.raises(DataError, match="2 of 40 images cannot be used") as caught:
        prepare_chexpert(root, tmp_path / "out", check=True)
    assert "coloured" in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert len(_items(prepare_chexpert(root, tmp_path / "out"))) == 40


def test_other_datalist_is_replaced_only_when_asked(tmp_path):
    root = _download(tmp_path / "data", _rows())
    first = prepare_chexpert(root, tmp_path / "out")
    with pytest.raises(DataError, match="--overwrite"):
        prepare_chexpert(root, tmp_path / "out", seed=1)
    assert json.loads((tmp_path / "out/datalist.json").read_text()) == first
    assert prepare_chexpert(root, tmp_path / "out", seed=1, overwrite=True) != first


def test_order_of_the_rows_does_not_matter(tmp_path):
    root = _download(tmp_path / "data", _rows())
    first = prepare_chexpert(root, tmp_path / "out")
    _write(root / SMALL, random.Random(0).sample(_rows(), 40))
    assert prepare_chexpert(root, tmp_path / "out") == first


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"finding": "2.0"}, r"line 4: Cardiomegaly is '2.0', but must be 1, 0, -1 or blank"),
        ({"view": ""}, r"line 4: Frontal/Lateral is '', but must be Frontal or Lateral"),
        ({"path": "train/patient00009/study1/view1_frontal.jpg"}, r"line 4: Path is 'train/patient00009"),
        ({"path": f"{SMALL}/valid/patient64541/study1/view1_frontal.jpg"}, r"line 4: Path is"),
    ],
)
def test_values_outside_the_rule_are_named_with_their_line(tmp_path, change, said):
    _write(tmp_path, [_row(1, "1.0"), _row(2, ""), _row(**{"patient": 9, "finding": "0.0", **change})])
    with pytest.raises(DataError, match=said):
        read_chexpert_table(tmp_path / "train.csv")


def test_blank_lines_do_not_shift_the_line_number(tmp_path):
    _write(tmp_path, [_row(1, "1.0"), _row(2, "x")])
    table = tmp_path / "train.csv"
    table.write_text(table.read_text().replace("\n", "\n\n", 1))
    with pytest.raises(DataError, match="line 4: Cardiomegaly is 'x'"):
        read_chexpert_table(table)


def test_repeated_image_is_refused_also_under_the_other_prefix(tmp_path):
    _write(tmp_path, [_row(1, "1.0"), _row(2, ""), _row(1, "0.0", prefix="CheXpert-v1.0")])
    with pytest.raises(DataError, match="'train/patient00001/study1/view1_frontal.jpg' in lines 2 and 4"):
        read_chexpert_table(tmp_path / "train.csv")


def test_missing_column_is_named_with_a_near_one(tmp_path):
    _write(tmp_path, [_row(1, "1.0")], HEADER.replace(",Cardiomegaly", ",cardiomegaly"))
    with pytest.raises(DataError, match=r"\['Cardiomegaly'\] are missing.*'Cardiomegaly' is close to \['cardiomegaly'"):
        read_chexpert_table(tmp_path / "train.csv")


def test_folder_without_the_table_is_refused(tmp_path):
    with pytest.raises(DataError, match="contains train.csv"):
        prepare_chexpert(tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="is not a folder"):
        prepare_chexpert(tmp_path / "nowhere", tmp_path / "out")


def test_full_size_gives_the_counts_of_the_paper(tmp_path):
    rng = random.Random(0)
    findings = ["1.0"] * 23385 + ["0.0"] * 7869 + ["-1.0"] * 6707 + [""] * 153066
    rng.shuffle(findings)
    with_frontal, lateral_only = range(7, 64541), range(1, 7)
    frontal = [*with_frontal, *rng.choices(with_frontal, k=191027 - 64534)]
    lateral = [*lateral_only, *rng.choices(with_frontal, k=223414 - 191027 - 6)]
    rows = [
        _row(patient, finding, study=study)
        for study, (patient, finding) in enumerate(zip(frontal, findings, strict=True))
    ]
    rows += [_row(patient, "", "Lateral", study=study) for study, patient in enumerate(lateral)]
    _write(tmp_path, rows)
    records, lateral_rows = read_chexpert_table(tmp_path / "train.csv")
    assert (len(records), lateral_rows) == (191027, 32387)
    assert count_images(records, CLASS_NAMES) == {
        "images": {"no_cardiomegaly": 160935, "cardiomegaly": 30092},
        "patients": 64534,
    }
    reference = draw_reference(records, 2, 7869, seed=0)
    assert [sum(record["label"] == label for record in reference) for label in (0, 1)] == [7869, 7869]
