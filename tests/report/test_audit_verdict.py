"""The first lines of an audit's report."""

import pytest

from medfusion_monai.report.audit_verdict import UNSEEN, verdict


def figure(value, low=None, high=None, note=""):
    return {"value": value, "low": low, "high": high, "note": note}


def audit(copies=0, rate=(0.0, 0.0, 0.02), **parts):
    row = {"copies": copies, "count": 200, "expected_false_alarms": 2.0, "copy_rate": figure(*rate)}
    clean = {
        "rows": [row],
        "rate": 0.01,
        "nearer_to_training": figure(0.51, 0.45, 0.57),
        "membership": {"auc": figure(0.52, 0.46, 0.58)},
        "passed": {"count": 200, "nearer_than_99": figure(0.01, 0.002, 0.03)},
        "power": {"recall": {"blur": figure(0.95, 0.9, 0.98)}},
        "repeats": 0,
    }
    return {**clean, **parts}


def test_nothing_found_is_stated_with_what_cannot_be_seen():
    words = verdict(audit())
    assert words == (f"This audit found nothing that speaks against sharing: no copy among these 200 images. {UNSEEN}")


def test_more_copies_than_false_alarms_forbid_sharing():
    words = verdict(audit(9, (0.045, 0.021, 0.084)))
    assert words.startswith("These images should not be shared: 9 of 200 are copies of a training image")
    assert "up to 2.0 would be flagged if none were." in words


def test_as_many_as_false_alarms_are_to_be_looked_at():
    words = verdict(audit(3, (0.015, 0.003, 0.043)))
    assert words.startswith("These images should not be shared before the flagged ones were looked at: 3 of 200")


def test_withheld_rate_leaves_the_question_open():
    row = {"copies": None, "count": 20, "copy_rate": figure(None, note="withheld: 20 generated images")}
    words = verdict(audit(rows=[row], nearer_to_training=figure(None)))
    assert words.startswith("Whether these images may be shared cannot be answered (withheld: 20 generated images).")


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (
            {"passed": {"count": 200, "nearer_than_99": figure(0.06, 0.03, 0.1)}},
            "6.0% of the images that are no copies are nearer to a training image than 99%",
        ),
        ({"nearer_to_training": figure(0.6, 0.55, 0.65)}, "60.0% are nearer to the training images"),
        ({"membership": {"auc": figure(0.7, 0.6, 0.8)}}, "AUC 0.70"),
        ({"power": {"recall": {"blur": figure(0.89, 0.8, 0.95)}}}, "misses more than a tenth of some degraded copies"),
        ({"repeats": 3}, "3 training images are repeated"),
        ({"other_training_images": 1}, "started from weights that were trained on other images"),
    ],
)
def test_each_figure_that_speaks_against_sharing_is_named(parts, words):
    found = verdict(audit(**parts))
    assert found.startswith("No copy was found among these 200 images, but they should not be shared unexamined. ")
    assert words in found
    assert words not in verdict(audit())


def test_figures_that_are_missing_speak_neither_way():
    missing = {"passed": {"count": 0}, "power": {}, "membership": {}, "nearer_to_training": figure(None)}
    assert verdict(audit(**missing)) == verdict(audit())


def test_images_are_never_called_safe_in_more_than_three_sentences():
    worst = audit(
        9,
        (0.045, 0.021, 0.084),
        repeats=3,
        nearer_to_training=figure(0.6, 0.55, 0.65),
        membership={"auc": figure(0.7, 0.6, 0.8)},
    )
    for words in (verdict(audit()), verdict(worst)):
        assert "safe" not in words.lower()
        assert words.count(". ") + 1 <= 3
