from medfusion_monai.demo.phantoms.families import FAMILIES
from medfusion_monai.evaluation.paper_figures import CLASS_NAMES, published_fidelity, published_reconstructions


def test_class_names_are_those_of_the_phantoms_of_each_modality():
    assert {name: set(family.class_names) for name, family in FAMILIES.items()} == CLASS_NAMES


def test_published_rows_are_those_of_the_same_modality():
    for published in (published_fidelity, published_reconstructions):
        rows = published(["msi", "mss"])["rows"]
        assert rows
        assert all("CRC-DX" in row["name"] for row in rows)
        assert published(["benign", "malignant"])["rows"] == []
