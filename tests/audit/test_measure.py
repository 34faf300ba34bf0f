import pytest
import torch

from medfusion_monai.audit.matching import Matches
from medfusion_monai.audit.measure import (
    Copies,
    copy_rows,
    describe_copies,
    find_copies,
    near_by_measure,
    nearer_figure,
    passed_images,
)
from medfusion_monai.audit.power import DEGRADATIONS
from medfusion_monai.audit.sets import AuditedSet
from medfusion_monai.audit.statistics import Calibration
from medfusion_monai.evaluation.image_form import ImageFacts
from medfusion_monai.evaluation.image_set import ImageSet


def audited(prints, labels=None, class_names=()):
    items = [{"image": f"{k}.png", "label": None if labels is None else labels[k]} for k in range(len(prints.fine))]
    facts = [ImageFacts((32, 32), 1, False, False, str(k)) for k in range(len(items))]
    return AuditedSet(ImageSet("x", items, list(class_names), ""), facts, prints, lambda path: torch.empty(0))


def none_equal(images):
    return torch.zeros(len(images), dtype=torch.bool)


@pytest.fixture(scope="module")
def sets(alike, prints, unknown, others):
    """Training, held-out, and generated images of which the first ten are copies."""
    training, held_out = alike
    generated = unknown(torch.cat([0.8 * training[:10] + 0.1, others[:50]]))
    return prints(training), prints(held_out, 1000 + torch.arange(len(held_out))), generated


@pytest.fixture(scope="module")
def copies(sets, alike):
    found = find_copies(*sets, none_equal(alike[1]))
    assert found is not None
    return found


def test_copies_among_generated_images_are_counted(copies, sets):
    row = copy_rows(copies, 120, audited(sets[2]), ["a", "b"])[0]
    assert row["count"] == 60
    assert 10 <= row["copies"] <= 12  # 1% of false alarms is expected
    assert row["copy_rate"]["value"] == row["copies"] / 60
    assert row["copy_rate"]["low"] < row["copy_rate"]["value"] < row["copy_rate"]["high"]
    assert row["expected_false_alarms"] == pytest.approx(60 * copies.calibration.rate)
    assert copies.found()[:10].all()


def test_images_that_pass_but_are_nearer_than_held_out_ones_are_counted():
    scores = torch.tensor([0.1, 0.5, 0.9, 0.9, 0.9])
    nearest = torch.tensor([0.01, 0.2, 0.29, 0.31, 0.5])[:, None]
    held = torch.cat([torch.tensor([0.3]), 0.4 + torch.arange(199) / 199, torch.tensor([0.05])])[:, None]
    held_scores = torch.ones(201)
    held_scores[200] = 0.2  # a near-duplicate, below the threshold
    empty = torch.empty(0)
    generated, held_out = (
        Matches(some, empty, empty, empty, near) for some, near in ((scores, nearest), (held_scores, held))
    )
    copies = Copies(generated, held_out, empty, empty, None, ("pixels", "structure"))
    found = passed_images(copies, Calibration(0.4, 0.01, 200))
    assert found["count"] == 4
    assert found["nearer_than_all"]["value"] == 2 / 4
    assert found["nearer_than_99"]["value"] == 3 / 4


def test_each_measure_alone_has_a_threshold_of_its_own(sets, alike):
    """Features that put the last five generated images upon training images, whose pixels do not."""
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(len(each.fine), 1, 4, generator=generator) for each in sets]
    features[2][-5:] = features[0][50:55]
    given = [each._replace(features=vectors) for each, vectors in zip(sets, features, strict=True)]
    found = find_copies(*given, none_equal(alike[1]), "none")
    assert 10 <= int(found.found().sum()) <= 12
    near = near_by_measure(found)
    assert set(near) == {"pixels", "structure", "features"}
    assert 10 <= near["pixels"] <= 12
    assert 5 <= near["features"] <= 7
    assert describe_copies(found, "none")["near_by_measure"] == near


def test_held_out_image_that_is_in_training_is_a_leak_and_does_not_lower_the_threshold(sets, alike, copies, prints):
    training, held_out = alike
    leaking = torch.cat([held_out, 0.9 * training[20:23] + 0.05])
    found = find_copies(sets[0], prints(leaking, 1000 + torch.arange(103)), sets[2], none_equal(leaking))
    assert found.leaked.nonzero()[:, 0].tolist() == [100, 101, 102]
    assert found.calibration.threshold == pytest.approx(copies.calibration.threshold, abs=1e-6)
    assert found.kept.tolist() == list(range(100))


def test_near_duplicates_among_held_out_images_do_not_hide_copies(sets, alike, copies, prints):
    training, held_out = alike
    near = torch.cat([held_out, DEGRADATIONS["noise 0.05"](training[20:22])])
    found = find_copies(sets[0], prints(near, 1000 + torch.arange(102)), sets[2], none_equal(near))
    assert found.calibration.apart + int(found.leaked.sum()) == 2
    assert found.calibration.threshold == pytest.approx(copies.calibration.threshold, rel=0.08)


def test_held_out_images_that_are_all_in_training_leave_no_threshold(sets, alike, prints):
    training, _ = alike
    found = find_copies(sets[0], prints(training[:60], 1000 + torch.arange(60)), sets[2], torch.ones(60).bool())
    assert found is None


def test_repeated_training_image_does_not_hide_its_copies(alike, sets, prints):
    training, held_out = alike
    repeated = torch.cat([training, training[:1].expand(64, -1, -1, -1)])
    found = find_copies(prints(repeated), sets[1], sets[2], none_equal(held_out))
    assert found.found()[:10].all()
    assert found.generated.places[:10].tolist() == list(range(10))


def test_rate_of_each_class_has_its_own_row_and_few_images_no_number(copies, sets):
    labels = [0] * 55 + [1] * 5
    rows = copy_rows(copies, 120, audited(sets[2], labels, ["a", "b"]), ["a", "b", "c"])
    assert [row["class_name"] for row in rows] == [None, "a", "b", "c"]
    assert [row["count"] for row in rows] == [60, 55, 5, 0]
    assert rows[1]["copy_rate"]["value"] >= 10 / 55
    assert rows[2]["copy_rate"]["value"] is None
    assert "5 generated images; at least 50" in rows[2]["copy_rate"]["note"]
    assert "no generated images of class c" in rows[3]["copy_rate"]["note"]


def test_few_held_out_images_withhold_the_rate(sets, alike):
    few = sets[1].select(range(30))
    found = find_copies(sets[0], few, sets[2], none_equal(few.fine))
    assert found.calibration is None
    assert not found.found().any()
    row = copy_rows(found, 120, audited(sets[2]), [])[0]
    assert row["copy_rate"]["value"] is None
    assert "copies" not in row
    assert "too few to calibrate a threshold" in row["copy_rate"]["note"]


def test_few_training_images_withhold_the_rate(copies, sets):
    row = copy_rows(copies, 49, audited(sets[2]), [])[0]
    assert row["copy_rate"]["value"] is None
    assert "49 training images" in row["copy_rate"]["note"]


def test_copies_are_nearer_to_training_images_and_new_images_are_not(sets, alike, unknown, others):
    training, held_out = alike
    kept = torch.arange(len(held_out))
    copied = unknown(0.8 * training[:60] + 0.1)
    bad = nearer_figure(audited(sets[0]), audited(sets[1]), audited(copied), kept)
    good = nearer_figure(audited(sets[0]), audited(sets[1]), audited(unknown(others)), kept)
    assert bad.low > 0.75
    assert good.value < 0.65


def test_share_that_needs_more_images_says_which(sets, unknown, others):
    kept = torch.arange(20)
    figure = nearer_figure(audited(sets[0]), audited(sets[1]), audited(unknown(others[:10])), kept)
    assert figure.value is None
    assert "20 held-out and 10 generated images" in figure.note
