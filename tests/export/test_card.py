import pytest

import medfusion_monai
from medfusion_monai.export.card import CardFacts, model_card
from medfusion_monai.report.page_parts import Cell, Column, Group, Section, Table

INFO = {
    "class_names": ["healthy", "ill"],
    "class_shares": [0.75, 0.25],
    "image": {"size": [48, 64], "channels": 3},
    "networks": {
        "autoencoder": {"type": "Autoencoder", "latent_channels": 4},
        "unet": {"type": "UNet", "channels": [8, 16]},
    },
    "schedule": {"prediction_type": "sample"},
    "sampler": {"sampler": "unipc", "num_inference_steps": 17, "negative_label": None},
    "training": {"image_count": 12345, "steps": 6789, "images_per_step": 32},
    "version": "0.0.9",
}
FACTS = CardFacts(
    metadata={"name": "Name", "version": "1.2", "description": "What it is.", "intended_use": "Only for tests."},
    info=INFO,
    parameters={"autoencoder": 1234567, "unet": 7},
)


def section(card, title):
    _, found, rest = card.partition(f"\n## {title}\n")
    assert found, title
    return rest.partition("\n## ")[0]


def test_card_shows_the_description_of_the_bundle():
    card = model_card(FACTS)
    assert card.startswith("# Name: weights\n\nWhat it is.\n")
    assert section(card, "Intended use").strip() == "Only for tests."
    assert "version 1.2" in section(card, "Use")


def test_card_has_classes_shares_and_sizes():
    card = model_card(FACTS)
    training = section(card, "Training data")
    assert "| 0 | healthy | 75.0% |" in training
    assert "| 1 | ill | 25.0% |" in training
    assert "48 x 64 pixels" in training
    assert "three channels" in training
    assert "Number of training images: 12,345." in training
    networks = section(card, "Networks")
    assert "| parameters of autoencoder | 1,234,567 |" in networks
    assert "unet_channels" in networks
    assert "0.0.9" in networks
    for row in (r"unet_channels | \[8, 16\]", "latent_channels | 4", "prediction_type | sample", "sampler | unipc"):
        assert f"| {row} |" in networks
    assert "| num_inference_steps | 17 |" in networks
    assert "| steps of phase two | 6789 |" in networks
    assert "negative_label" not in networks


def test_facts_that_no_file_records_are_unknown():
    card = model_card(
        FACTS._replace(info={key: INFO[key] for key in INFO if key not in ("class_shares", "version", "training")})
    )
    assert "| 0 | healthy | unknown |" in section(card, "Training data")
    assert "Number of training images: unknown." in section(card, "Training data")
    assert "| trained with medfusion_monai | unknown |" in section(card, "Networks")


def test_card_without_reports_states_not_measured_and_not_audited():
    card = model_card(FACTS)
    assert "Not measured" in section(card, "Metrics")
    assert "Not audited" in section(card, "Privacy audit")


def test_command_names_only_the_weights_and_a_class():
    lines = model_card(FACTS).splitlines()
    command = "python -m monai.bundle run inference --config_file configs/inference.yaml"
    assert f"{command} --model_file FOLDER/model.safetensors --label ill --num_samples 64" in lines
    assert "import medfusion_monai as mf" in lines
    assert 'images = mf.load("FOLDER").sample("ill", n=4)' in lines


def test_name_of_a_class_is_quoted_for_a_shell_and_for_python():
    card = model_card(FACTS._replace(info={**INFO, "class_names": ["healthy", 'very "ill"; rm x']}))
    assert """--label 'very "ill"; rm x' --num_samples""" in card
    assert r'sample("very \"ill\"; rm x", n=4)' in card


def test_card_names_the_wheel_and_no_package_of_an_index():
    use = section(model_card(FACTS), "Use")
    assert f"pip install medfusion_monai-{medfusion_monai.__version__}-py3-none-any.whl" in use
    assert "make bundles" in use
    assert "medfusion-monai" not in use


def test_card_without_a_bundle_states_it():
    card = model_card(FACTS._replace(metadata=None))
    assert card.startswith("# Medfusion: weights\n\nThese weights were exported without a bundle")
    assert section(card, "Intended use").strip() == "Not stated."
    assert "Weights for the bundle" not in card


def figures(**more):
    return {"value": 0.5, "low": 0.25, "high": 0.75, "note": "", **more}


REPORT = {
    "title": "A report",
    "warnings": ["Few images."],
    "sets": [{"name": "Medfusion", "source": "samples of inference in 'planted_place'", "count": 9}],
    "reference": {"name": "reference", "source": "split of 'planted_place'", "count": 8},
    "pictures": [{"file": "planted_picture.png", "title": "Pictures"}],
    "features": {"name": "phantoms", "is_inception": False},
    "fidelity": [{"name": "Medfusion", "class_name": None, "count": 9, "reference_count": 8, "precision": figures()}],
    "steering": {"rows": [{"trained_on": "real", "tested_on": "Medfusion", "auc": figures(value=0.9)}]},
    "repeat": {"commands": ["run --dataset_dir planted_place"], "checksums": {"model.pt": "ab" * 32}},
}


def test_card_shows_the_figures_of_a_report_with_intervals_and_warnings():
    metrics = section(model_card(FACTS._replace(report=REPORT)), "Metrics")
    assert "0.500 (0.250 to 0.750)" in metrics
    assert "0.900 (0.250 to 0.750)" in metrics
    assert "> **Few images.**" in metrics
    assert "not with the Inception-v3 features" in metrics
    assert "do not record which weights" not in metrics


def test_places_commands_and_pictures_of_a_report_stay_out_of_the_card():
    assert "planted" not in model_card(FACTS._replace(report=REPORT))


def test_report_that_names_no_weights_is_marked_as_unbound():
    report = {key: value for key, value in REPORT.items() if key != "repeat"}
    assert "do not record which weights" in section(model_card(FACTS._replace(report=report)), "Metrics")


def test_report_without_figures_is_not_measured():
    assert "Not measured" in section(model_card(FACTS._replace(report={"title": "A report"})), "Metrics")


@pytest.fixture
def audited(monkeypatch):
    """The section of a card with an audit whose sections are partly about single images."""
    sections = [
        Section(
            "Copies", ["How copies are found.", Table("Rates", [Column("Copies")], [Group("", [[Cell("7")]])], [])]
        ),
        Section("Closest pairs", ["planted_pair"]),
        Section("What this audit cannot detect", ["Parts of images."]),
    ]
    monkeypatch.setattr("medfusion_monai.report.sections.audit_sections", lambda audit: sections)
    monkeypatch.setattr("medfusion_monai.report.audit_verdict.verdict", lambda audit: "planted answer")
    monkeypatch.setattr("medfusion_monai.export.card.conclusions", lambda audit: ["7 of 100 are copies."])
    audit = {
        "audit": {"rows": []},
        "warnings": ["Few held-out images."],
        "summary": ["planted_summary"],
        "sets": [{"name": "planted_set"}],
        "pictures": [{"file": "planted.png"}],
        "repeat": {"checksums": {"model.pt": "ab" * 32}, "commands": ["planted"]},
    }
    return section(model_card(FACTS._replace(audit=audit)), "Privacy audit")


def test_card_shows_what_an_audit_concludes_its_figures_warnings_and_limits(audited):
    for words in ("> **Few held-out images.**", "7 of 100 are copies.", "| 7 |", "Parts of images."):
        assert words in audited
    assert "Not audited" not in audited


def test_audit_sections_about_single_images_stay_out_of_the_card(audited):
    assert "planted" not in audited


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        ({"report": {"fidelity": [3]}}, "the report for the card has an unexpected form"),
        ({"report": {"reconstructions": 3}}, "the report for the card has an unexpected form"),
        ({"audit": {"title": "no audit"}}, "the audit for the card has an unexpected form .KeyError: 'audit'"),
    ],
)
def test_file_of_another_form_is_refused_with_what_to_give(measured, words):
    with pytest.raises(ValueError, match=rf"{words}.*give a (report|audit)\.json"):
        model_card(FACTS._replace(**measured))


@pytest.mark.parametrize("place", ["name", "description", "intended_use", "references"])
def test_no_text_is_taken_for_html_or_a_link(place):
    text = "<script>alert(1)</script> [a](javascript:b)"
    card = model_card(FACTS._replace(metadata={**FACTS.metadata, place: [text] if place == "references" else text}))
    assert "<script>" not in card
    assert "&lt;script&gt;" in card
    assert "[a](" not in card
