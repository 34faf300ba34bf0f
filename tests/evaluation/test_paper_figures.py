import pytest

from medfusion_monai.demo.phantoms.families import FAMILIES
from medfusion_monai.evaluation.metrics.fidelity import fidelity_columns
from medfusion_monai.evaluation.paper_figures import CLASS_NAMES, published_fidelity, published_reconstructions
from medfusion_monai.report.page_parts import Table
from medfusion_monai.report.sections import document
from medfusion_monai.report.tables import DASH


def test_class_names_are_those_of_the_phantoms_of_each_modality():
    assert {name: set(family.class_names) for name, family in FAMILIES.items()} == CLASS_NAMES


def test_published_rows_are_those_of_the_same_modality():
    for published in (published_fidelity, published_reconstructions):
        rows = published(["msi", "mss"])["rows"]
        assert rows
        assert all("CRC-DX" in row["name"] for row in rows)
        assert published(["benign", "malignant"])["rows"] == []


@pytest.mark.parametrize(("modality", "data_set", "recall"), [("cxr", "CheXpert", 0.08), ("histo", "CRC-DX", 0.24)])
def test_rows_of_the_journal_version_name_it_and_have_only_what_its_abstract_states(modality, data_set, recall):
    published = published_fidelity(sorted(CLASS_NAMES[modality]))
    [row] = [row for row in published["rows"] if "StyleGAN-3" in row["name"]]
    assert row == {"name": f"StyleGAN-3 (journal version, {data_set})", "recall": recall}
    assert "abstract of the journal version (Scientific Reports 13, 12098)" in published["note"]


def test_fundus_has_the_rows_of_the_paper_alone():
    published = published_fidelity(sorted(CLASS_NAMES["fundus"]))
    assert [row["name"] for row in published["rows"]] == ["StyleGAN-3 (paper, AIROGS)", "Medfusion (paper, AIROGS)"]
    assert "journal" not in published["note"]


def test_published_row_without_fid_has_a_dash_in_its_cell():
    found = document({"title": "", "sets": [], "published": published_fidelity(["msi", "mss"])}, fidelity_columns())
    [table] = [block for block in found.sections[0].blocks if isinstance(block, Table)]
    rows = {row[0].text: [cell.text for cell in row[1:]] for group in table.groups for row in group.rows}
    assert rows["StyleGAN-3 (journal version, CRC-DX)"] == [DASH, DASH, "0.24"]
