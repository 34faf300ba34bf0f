import pytest

from medfusion_monai.evaluation.metrics.fidelity import fidelity_columns
from medfusion_monai.report.sections import document
from medfusion_monai.report.verdict import verdict

ANSWERS = {"ours": {"answer": "partly", "why": "AUC 0.74 on generated images, 0.90 on real ones"}}
NOT_AUDITED = "Whether images are copies of training images was not measured: medfusion audit measures it."


def test_report_opens_with_three_sentences_and_the_pictures(results):
    results["steering"]["answers"] = ANSWERS
    report = document(results, fidelity_columns())
    assert report.answer == (
        "Against 200 real images, 128 images of ours have FID 20.25, precision 0.70 and recall 0.60; 128 images of "
        "other have FID 30.50, precision 0.59 and recall 0.50. Does the label steer? ours: partly (AUC 0.74 on "
        f"generated images, 0.90 on real ones). {NOT_AUDITED}"
    )
    assert report.sections[0].title == "Pictures"


def test_features_of_the_first_sentence_are_named(results):
    [first, *_] = verdict(results, "FID with own features (not Inception)")
    assert first.startswith("Against 200 real images with own features (not Inception), 128 images of ours have FID")


def test_what_was_not_measured_is_stated(results):
    del results["steering"]
    assert verdict(results, "FID")[1:] == ["Whether the label steers was not measured.", NOT_AUDITED]


def test_reconstructions_alone_have_their_own_sentence(results):
    for part in ("steering", "fidelity"):
        del results[part]
    sentences = verdict(results, "FID")
    assert sentences == ["Reconstructions of 200 images of split test by ours have MS-SSIM 0.989."]


@pytest.mark.parametrize("part", ["fid", "precision"])
def test_figures_without_a_value_are_left_out(results, part):
    for row in results["fidelity"]:
        row[part] = {"value": None, "note": "too few"}
    assert {"fid": "FID", "precision": "precision"}[part] not in verdict(results, "FID")[0]


def test_report_without_figures_has_no_verdict():
    assert verdict({"title": "One set", "sets": []}, "FID") == []


def test_evaluation_without_features_keeps_its_opening_beside_an_audit(results, monkeypatch):
    monkeypatch.setattr("medfusion_monai.report.sections.audit_sections", lambda audit: [])
    monkeypatch.setattr("medfusion_monai.report.verdict.conclusions", lambda audit: ["7 of 100 are copies."])
    for part in ("steering", "fidelity", "published", "sweep"):
        results.pop(part, None)
    expected = document(results, fidelity_columns()).answer
    assert "MS-SSIM" in expected
    assert document({**results, "audit": {"rows": []}}, fidelity_columns()).answer == f"{expected} 7 of 100 are copies."
