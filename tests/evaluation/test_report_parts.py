from types import SimpleNamespace

import pytest
import torch

from medfusion_monai.evaluation.image_form import ImageFacts
from medfusion_monai.evaluation.image_set import ImageSet
from medfusion_monai.evaluation.measured_set import Measured
from medfusion_monai.evaluation.metrics import fidelity
from medfusion_monai.evaluation.metrics.fidelity import Metric, fidelity_columns, measure_fidelity
from medfusion_monai.evaluation.metrics.intervals import Figure
from medfusion_monai.evaluation.report_parts import (
    add_fidelity,
    add_neighbours,
    add_real_baseline,
    fidelity_rows,
    warnings_of,
)
from medfusion_monai.report.builder import Draft
from medfusion_monai.report.pictures import COLUMNS
from medfusion_monai.report.tables import Measure


def image(path):
    """Replaces reading a file: an image whose brightness is the number in its path."""
    return torch.full((1, 16, 16), float(path) / 100)


def measured(name, labels, class_names=("a", "b"), features=None, digests=None, constant=False):
    items = [{"image": str(number), "label": label} for number, label in enumerate(labels)]
    if features is None:
        features = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(len(labels)))
    digests = digests or [f"{name} {number}" for number in range(len(labels))]
    facts = [ImageFacts((16, 16), 1, False, constant, digest) for digest in digests]
    return Measured(ImageSet(name, items, list(class_names), "made here"), image, features, facts)


def test_rows_are_overall_and_by_class():
    real = measured("reference", [0, 1] * 6)
    fake = measured("GAN", [1, 0, 0] * 5, features=real.features.repeat(2, 1)[:15] + 1)
    rows = fidelity_rows(real, [fake], replicates=0)
    assert [(row["class_name"], row["reference_count"], row["count"]) for row in rows] == [
        (None, 12, 15),
        ("a", 6, 10),
        ("b", 6, 5),
    ]
    of_class = fidelity_rows(
        measured("reference", [0] * 6, ["a"], real.features[::2]),
        [measured("GAN", [0] * 10, ["a"], fake.features[[1, 2, 4, 5, 7, 8, 10, 11, 13, 14]])],
        replicates=0,
    )
    assert len(of_class) == 1  # one class is the same as all
    assert rows[1]["fid"]["value"] == pytest.approx(of_class[0]["fid"]["value"])


def test_sets_without_classes_are_compared_as_a_whole():
    rows = fidelity_rows(measured("reference", [0, 1] * 4), [measured("GAN", [None] * 6, [])], replicates=0)
    assert [row["class_name"] for row in rows] == [None]


def test_class_without_images_says_how_many_there_are():
    [_, _, row] = fidelity_rows(measured("reference", [0] * 8), [measured("GAN", [0, 1] * 4)])
    assert (row["class_name"], row["reference_count"], row["count"]) == ("b", 0, 4)
    assert row["fid"]["value"] is None
    assert row["fid"]["note"].startswith("4 samples against 0; ")


def test_no_replicates_leave_all_intervals_out():
    def noise(path):
        return torch.rand(1, 48, 48, generator=torch.Generator().manual_seed(int(path)))

    sets = [measured(name, [None] * 8, [])._replace(load=noise) for name in ("reference", "GAN")]
    [row] = fidelity_rows(sets[0], sets[1:], replicates=0)
    assert row["diversity_ms_ssim"]["value"] is not None
    assert {row[name]["low"] for name in ("fid", "kid", "precision", "diversity_ms_ssim")} == {None}


@pytest.mark.parametrize(
    ("labels", "class_names", "words"),
    [
        ([0, 1] * 4, ("a", "b"), []),
        ([None] * 8, (), []),
        ([0, 0, 0, 1] * 4, ("a", "b"), ["a 75% instead of 50%"]),
        ([0] * 8, ("b",), [r"has no images of ['a']"]),
        ([0, 1] * 4, ("a", "B"), [r"classes ['B'] are not among those of reference (['a', 'b'])"]),
    ],
)
def test_classes_that_differ_are_told(labels, class_names, words):
    found = warnings_of(measured("reference", [0, 1] * 4), [measured("GAN", labels, class_names)])
    assert len(found) == len(words)
    assert all(word in sentence for word, sentence in zip(words, found, strict=True))


@pytest.mark.parametrize("inception", [True, False])
def test_kid_is_measured_with_inception_features_only(inception):
    draft = Draft("title", {}, {}, fidelity=fidelity_columns())
    sets = [measured(name, [0] * 8) for name in ("reference", "GAN")]
    extractor = SimpleNamespace(describe=lambda: {"name": "own", "is_inception": inception})
    add_fidelity(draft, sets[0], sets[1:], extractor, replicates=0)
    assert ("kid" in draft.results["fidelity"][0]) is inception


def test_copies_repeats_and_constant_images_are_told():
    real = measured("reference", [0, 1], digests=["x", "y"])
    [copies, repeats] = warnings_of(real, [measured("GAN", [0, 1, 0, 1], digests=["x", "p", "p", "q"])])
    assert copies.startswith("GAN: 1 of 4 images equal images of reference")
    assert repeats.startswith("GAN: 1 of 4 images repeat another")
    [constant] = warnings_of(real, [measured("GAN", [0, 1], constant=True)])
    assert constant == "GAN: 2 of 2 images have a single colour."


def test_nearest_training_images_are_those_of_the_features():
    training = measured("training", [0] * 30, features=torch.arange(30.0)[:, None] * torch.ones(1, 4))
    order = [25, 3, 11, 19, 7, 2, 28, 14, 9, 21]
    near = torch.tensor([order]).T + torch.tensor([[0.0, 0.1, 0.2, 0.3, 0.4, 0.01, 0.02, 0.03, 0.04, 0.05]]).T
    fake = measured("GAN", [0] * 10, features=near * torch.ones(1, 4))
    draft = Draft("title", {}, {})
    add_neighbours(draft, [fake], training, SimpleNamespace(name="own features"))
    [entry] = draft.results["pictures"]
    assert entry["file"] == "neighbours_1.png"
    assert f"The {COLUMNS} of 10 images closest to a training image, by own features" in entry["caption"]
    pixels = draft.pictures["neighbours_1.png"].convert("L")
    # Below the closest samples (numbers 0, 5, 6, ...) are the training images whose number is their feature.
    step = 8 * 18  # enlarged eight times, with margins
    columns = [210 + 8 * 2 + 64 + step * column for column in range(3)]
    shown = [[pixels.getpixel((x, 8 * 2 + 64 + step * row)) for x in columns] for row in range(2)]
    assert shown[0] == [round(255 * number / 100) for number in (0, 5, 6)]
    assert shown[1] == [round(255 * number / 100) for number in (25, 2, 28)]


def test_real_images_are_measured_as_a_scale():
    real = measured("reference", [0, 1] * 20)
    features = torch.randn(70, 4, generator=torch.Generator().manual_seed(7))
    training = measured("training", [0, 1] * 35, features=features)
    draft = Draft("title", {}, {})
    add_real_baseline(draft, real, [measured("GAN", [0] * 30), measured("many", [0] * 31)], training)
    [sentence] = draft.results["scale"]
    # The reference's own images, of the paths 0 to 39, are left out, so that 30 remain: too few for the second set.
    expected = measure_fidelity(real.features, features[40:], replicates=0)["fid"].value
    assert sentence.startswith(f"For scale: 30 random training images have a Fréchet distance of {expected:.2f}")


def test_metric_of_the_table_reaches_rows_summary_and_report(monkeypatch, tmp_path):
    def centroid_figure(sets):
        return Figure(float((sets.real.mean(dim=0) - sets.fake.mean(dim=0)).norm()), note=sets.note)

    column = Measure("centroid", "Centroid distance", 3, "lower")
    own = Metric(column, centroid_figure, "Centroids are means of features.", headline="centroids apart by")
    monkeypatch.setattr(fidelity, "METRICS", (*fidelity.METRICS, own))
    real, near, far = (
        measured(name, [0, 1] * 4, features=torch.eye(8) + shift)
        for name, shift in (("reference", 0.0), ("near", 0.5), ("far", 2.0))
    )
    real = real._replace(images=real.images._replace(items=real.images.items[:4]), features=real.features[:4])
    draft = Draft("title", {}, {}, fidelity=fidelity_columns())
    extractor = SimpleNamespace(describe=lambda: {"name": "own"})
    add_fidelity(draft, real, [near, far], extractor, replicates=0)
    add_real_baseline(draft, real, [measured("GAN", [0] * 4)], far)
    expected = float((real.features.mean(dim=0) - far.features.mean(dim=0)).norm())
    rows = {(row["name"], row["class_name"]): row for row in draft.write(tmp_path)["fidelity"]}
    assert rows["far", None]["centroid"]["value"] == pytest.approx(expected)
    assert "centroids apart by" in draft.results["scale"][-1]
    text = (tmp_path / "report.md").read_text()
    assert "Centroids are means of features." in text
    assert "Centroid distance (lower is better)" in text
    assert f"{expected:.3f}" in text
