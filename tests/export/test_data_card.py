"""The text of the card of a set of samples."""

import pytest

from medfusion_monai.export.data_card import ClassCount, DataFacts, data_card, problems
from medfusion_monai.export.own_figures import OTHER_IMAGES, OTHER_TRAINING

SETTINGS = {
    "copy_guard": "none",
    "sampler": "unipc",
    "num_inference_steps": "17",
    "guidance_scale": "2.5",
    "negative_label": "None",
    "image_size": "48x64",
    "output_format": "png16",
    "weights_sha256": "ab" * 32,
}
FACTS = DataFacts(
    classes=[ClassCount(0, "healthy", 1200), ClassCount(1, "ill", 34)],
    settings=SETTINGS,
    channels=1,
    checksums={"manifest.csv": "cd" * 32},
)
MODEL = {
    "bundle": "Chest 1.2",
    "class_names": ["healthy", "ill"],
    "class_shares": [0.75, 0.25],
    "image": {"size": [48, 64], "channels": 1},
    "training": {"image_count": 12345},
}
MEASURED = "Not measured: the last section has the commands."


def section(card, title):
    _, found, rest = card.partition(f"\n## {title}\n")
    assert found, title
    return rest.partition("\n## ")[0].strip()


def figure(value, **more):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "note": "", **more}


FIGURES = {
    "sets": [{"name": "Medfusion"}],
    "warnings": ["Few images."],
    "features": {"name": "Inception-v3", "is_inception": True},
    "scale": ["For scale: 12 images have a recall of 0.90.", "Random pairs have a mean MS-SSIM of 0.321."],
    "fidelity": [
        {
            "name": "Medfusion",
            "class_name": None,
            "count": 1234,
            "reference_count": 2000,
            "fid": figure(17.28),
            "kid": figure(0.2),
            "precision": figure(0.68),
            "recall": figure(0.32),
            "coverage": figure(0.45),
            "diversity_ms_ssim": figure(0.56),
        }
    ],
    "reconstructions": [
        {"name": "Medfusion", "split": "test", "count": 9, "ms_ssim": {"mean": 0.99, "std": 0.01, "note": ""}}
    ],
    "reconstructions_note": "MS-SSIM has five scales.",
    "steering": {
        "note": "How to read.",
        "answers": {"Medfusion": {"answer": "partly", "why": "AUC 0.70"}},
        "rows": [{"trained_on": "real", "tested_on": "Medfusion", "auc": figure(0.7)}],
    },
}


def test_card_has_counts_by_class_and_the_form_of_the_images():
    card = data_card(FACTS)
    assert card.startswith("# Synthetic images: healthy, ill\n")
    images = section(card, "Images")
    assert "Number of images: 1,234. Form: one channel, 48 pixels high, 64 wide; files: PNG, 16 bits" in images
    assert "| 0 | healthy | 1,200 |" in images
    assert "| 1 | ill | 34 |" in images
    assert "Form: three channels, 48 pixels high" in data_card(FACTS._replace(channels=3))


def test_card_has_weights_sampler_and_guidance():
    source = section(data_card(FACTS._replace(model=MODEL)), "Source")
    weights = "ab" * 32
    for row in ("Chest 1.2", "unipc", "17", "2.5", weights):
        assert f"| {row} |" in source
    assert "one per image, in manifest.csv" in source
    assert "negative" not in source


def test_card_with_the_weights_has_their_training_images():
    training = section(data_card(FACTS._replace(model=MODEL)), "Training images of the model")
    assert "Number of training images: 12,345." in training
    assert "| 1 | ill | 25.0% |" in training
    assert "To be completed" in training


def test_card_without_the_weights_states_it():
    training = section(data_card(FACTS), "Training images of the model")
    assert "Not stated, as the card was written without the weights: medfusion card --model-file" in training


def test_what_was_not_measured_is_named_with_the_commands():
    card = data_card(FACTS)
    assert [section(card, title) for title in ("Fidelity", "Diversity", "Utility")] == [MEASURED] * 3
    assert card.splitlines()[2].startswith("Not audited for copies of training images")
    assert "Not audited" in section(card, "Privacy")
    commands = section(card, "Files and commands").splitlines()
    assert [line.split()[:2] for line in commands if line.startswith("medfusion")] == [
        ["medfusion", "audit"],
        ["medfusion", "card"],
    ]
    assert any(line.startswith("python -m monai.bundle run evaluating") for line in commands)


def test_figures_are_under_what_they_are_about():
    card = data_card(FACTS._replace(figures=FIGURES))
    fidelity, diversity = section(card, "Fidelity"), section(card, "Diversity")
    for words in ("17.28 (17.18 to 17.38)", "0.680", "KID", "> **Few images.**", "0.990 ± 0.010", "recall of 0.90"):
        assert words in fidelity
        assert words not in diversity
    for words in ("0.320 (0.220 to 0.420)", "0.450", "0.560", "MS-SSIM of 0.321"):
        assert words in diversity
        assert words not in fidelity
    assert "Features: Inception-v3" in fidelity
    assert "Features:" not in diversity
    assert "Medfusion: partly (AUC 0.70)." in section(card, "Utility")
    assert MEASURED not in card


def test_part_that_a_report_lacks_is_said_to_be_lacking():
    card = data_card(FACTS._replace(figures={**FIGURES, "steering": {}, "fidelity": []}))
    lacking = "Not measured: the report that was given has no such figures of these images."
    assert section(card, "Diversity") == section(card, "Utility") == lacking
    fidelity = section(card, "Fidelity")
    assert fidelity.startswith(f"> **Few images.**\n\n{lacking}")
    assert "0.990 ± 0.010" in fidelity


def test_report_of_other_images_is_said_to_be_that_beside_reconstructions_of_the_weights():
    facts = FACTS._replace(figures={key: FIGURES[key] for key in ("reconstructions", "reconstructions_note")})
    card = data_card(facts)
    refusal = "> **The report that was given is of other images or labels than these"
    assert all(refusal in section(card, title) for title in ("Fidelity", "Diversity", "Utility"))
    assert "0.990 ± 0.010" in section(card, "Fidelity")
    assert problems(facts) == [OTHER_IMAGES.format(file="report")]


@pytest.fixture
def audit(monkeypatch):
    monkeypatch.setattr("medfusion_monai.report.audit_verdict.verdict", lambda audit: "An answer.")
    monkeypatch.setattr("medfusion_monai.export.data_card.audit_blocks", lambda audit: ["Seven copies."])
    return {"audit": {"rows": []}, "warnings": []}


def test_audit_gives_the_first_sentence_and_the_section_on_privacy(audit):
    card = data_card(FACTS._replace(audit=audit))
    assert card.splitlines()[2] == "An answer."
    assert "Seven copies." in section(card, "Privacy")
    assert "Not audited" not in card


def test_audit_that_is_not_about_these_images_is_not_shown(audit):
    facts = FACTS._replace(audit=audit, audit_problem=OTHER_TRAINING)
    card = data_card(facts)
    assert card.splitlines()[2].startswith("Not audited")
    assert OTHER_TRAINING in section(card, "Privacy")
    assert "Seven copies" not in card
    assert problems(facts) == [OTHER_TRAINING]


def test_guard_and_what_it_refused_are_stated():
    guarded = {**SETTINGS, "copy_guard": "ef" * 32}
    classes = [ClassCount(0, "healthy", 1200, 3), ClassCount(1, "ill", 34)]
    card = data_card(FACTS._replace(settings=guarded, classes=classes))
    privacy = section(card, "Privacy")
    assert f"A guard (SHA-256 {'ef' * 32}) judged every image before it was written and refused 3 as copies" in privacy
    assert "refused.csv lists them" in privacy
    assert "| 0 | healthy | 1,200 | 3 |" in section(card, "Images")
    assert "No guard was in use" in section(data_card(FACTS), "Privacy")


def test_no_name_of_a_class_is_taken_for_html_a_link_or_a_cell():
    name = "<script>alert(1)</script> [a](javascript:b) | c\n# d"
    model = {**MODEL, "class_names": ["healthy", name], "bundle": name}
    card = data_card(FACTS._replace(classes=[ClassCount(1, name, 5)], model=model))
    assert "<script>" not in card
    assert "[a](" not in card
    assert r"\| c # d" in card
    assert "\n# d" not in card


def test_report_of_an_unexpected_form_is_refused_with_what_to_give():
    with pytest.raises(ValueError, match=r"the report for the card has an unexpected form.*give a report\.json"):
        data_card(FACTS._replace(figures={**FIGURES, "fidelity": [3]}))
