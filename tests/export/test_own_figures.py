"""Which figures of reports and audits are of a set of samples."""

import pytest

from medfusion_monai.export.own_figures import OTHER_IMAGES, OTHER_TRAINING, Identity, audit_problem, own_figures
from medfusion_monai.report.read_back import AUDIT_OF_OTHERS

SAMPLES = Identity("c0" * 32, {"healthy": 6, "ill": 6}, "ab" * 32)
OURS = {"name": "Medfusion", "content_sha256": "c0" * 32, "classes": {"healthy": 6, "ill": 6}}
THEIRS = {"name": "GAN", "content_sha256": "d1" * 32, "classes": {"healthy": 6, "ill": 6}}
PAIRS = [("real", "real test"), ("real", "Medfusion"), ("real", "GAN"), ("Medfusion", "real test")]
PAIRS += [("GAN", "real test"), ("real and Medfusion", "real test"), ("real and GAN", "real test")]
REPORT = {
    "warnings": ["Few images.", "Medfusion: repeats images.", "GAN: repeats images.", AUDIT_OF_OTHERS],
    "sets": [THEIRS, OURS],
    "features": {"name": "inception"},
    "scale": ["For scale."],
    "fidelity": [{"name": "GAN", "class_name": None}, {"name": "Medfusion", "class_name": None}],
    "reconstructions": [{"name": "Medfusion", "split": "test"}, {"name": "SD VAE", "split": "test"}],
    "reconstructions_note": "Scales.",
    "steering": {
        "note": "How to read.",
        "answers": {"GAN": {"answer": "no"}, "Medfusion": {"answer": "yes"}},
        "rows": [{"trained_on": first, "tested_on": second} for first, second in PAIRS],
    },
    "pictures": [{"file": "planted.png"}],
    "repeat": {"checksums": {"model.pt": "ab" * 32}, "commands": ["planted"]},
}


def without_weights(measured):
    return {**measured, "repeat": {"checksums": {}}}


def test_rows_of_other_sets_and_first_stages_are_left_out():
    own = own_figures(REPORT, SAMPLES)
    assert own["sets"] == [OURS]
    assert [row["name"] for row in own["fidelity"]] == ["Medfusion"]
    assert [row["name"] for row in own["reconstructions"]] == ["Medfusion"]
    assert own["steering"]["answers"] == {"Medfusion": {"answer": "yes"}}
    shown = [(row["trained_on"], row["tested_on"]) for row in own["steering"]["rows"]]
    assert shown == [pair for pair in PAIRS if "GAN" not in "".join(pair)]
    assert own["warnings"] == ["Few images.", "Medfusion: repeats images."]
    assert "planted" not in str(own)


@pytest.mark.parametrize(
    "other",
    [{"content_sha256": "00" * 32}, {"classes": {"healthy": 5, "ill": 7}}],
    ids=["pixels", "labels"],
)
def test_report_of_other_images_has_only_reconstructions_of_the_same_weights(other):
    own = own_figures({**REPORT, "sets": [{**OURS, **other}]}, SAMPLES)
    assert set(own) == {"reconstructions", "reconstructions_note"}
    assert len(own["reconstructions"]) == 1


def test_report_that_names_no_weights_has_no_reconstructions_of_these_but_figures_of_the_images():
    own = own_figures(without_weights(REPORT), SAMPLES)
    assert "reconstructions" not in own
    assert len(own["fidelity"]) == 1


def test_set_that_carries_no_checksum_is_not_taken_for_these_images():
    bare = {"name": "Medfusion", "classes": OURS["classes"]}
    assert "sets" not in own_figures({**REPORT, "sets": [bare]}, SAMPLES)


AUDIT = {
    "sets": [{**OURS, "name": "generated"}, {**THEIRS, "name": "training"}],
    "repeat": {"checksums": {"training images": "ef" * 32}},
}


@pytest.mark.parametrize("trained_on", [None, "ef" * 32])
def test_audit_of_these_images_against_these_training_images_is_shown(trained_on):
    assert audit_problem(AUDIT, SAMPLES._replace(trained_on=trained_on)) is None


def test_audit_of_other_images_is_said_to_be_that():
    generated = {**OURS, "name": "generated", "content_sha256": "00" * 32}
    assert audit_problem({**AUDIT, "sets": [generated]}, SAMPLES) == OTHER_IMAGES.format(file="audit")


def test_training_images_that_equal_the_samples_are_not_taken_for_audited_ones():
    swapped = [{**THEIRS, "name": "generated"}, {**OURS, "name": "training"}]
    assert audit_problem({**AUDIT, "sets": swapped}, SAMPLES) == OTHER_IMAGES.format(file="audit")


def test_audit_against_other_training_images_than_those_of_the_weights_is_said_to_be_that():
    assert audit_problem(AUDIT, SAMPLES._replace(trained_on="00" * 32)) == OTHER_TRAINING
