import numpy as np
import pytest
import torch
from torch.nn import functional as F

from medfusion_monai.demo.phantoms.families import FAMILIES
from medfusion_monai.evaluation.metrics.classifier import (
    LabelledImages,
    class_counts,
    labelled_images,
    scores,
    train_classifier,
)

QUICK = {"steps": 60, "size": 32, "batch_size": 32}


def discs(count, num_classes=2, channels=1, size=32, seed=0):
    """Noise with a disc at some place; the class is its radius."""
    rng = np.random.default_rng(seed)
    labels = torch.arange(count) % num_classes
    rows, columns = np.mgrid[:size, :size]
    images = 0.3 + 0.1 * rng.random((count, channels, size, size))
    for image, label in zip(images, labels.tolist(), strict=True):
        y, x = rng.uniform(12, size - 12, 2)
        image[:, (rows - y) ** 2 + (columns - x) ** 2 < (3 + 3 * label) ** 2] += 0.5
    return LabelledImages(torch.from_numpy(images).float(), labels)


def accuracy(classifier, data):
    return float((scores(classifier, data.images).argmax(dim=1) == data.labels).double().mean())


@pytest.mark.parametrize(("num_classes", "channels"), [(2, 1), (3, 3)])
def test_classes_that_differ_are_told_apart(num_classes, channels):
    classifier = train_classifier(discs(240, num_classes, channels), num_classes, **QUICK)
    assert accuracy(classifier, discs(90, num_classes, channels, seed=1)) > 0.95


def test_chest_phantoms_are_told_apart_by_the_size_of_the_heart():
    images = [FAMILIES["cxr"].draw(index, index % 2, size=64)[0] for index in range(400)]
    data = LabelledImages(torch.from_numpy(np.stack(images)), torch.arange(400) % 2)
    classifier = train_classifier(LabelledImages(data.images[:300], data.labels[:300]), 2, steps=120)
    assert accuracy(classifier, LabelledImages(data.images[300:], data.labels[300:])) > 0.95


def test_same_seed_gives_the_same_classifier_whatever_was_drawn_before():
    data = discs(40)
    settings = QUICK | {"steps": 3}
    first = train_classifier(data, 2, seed=1, **settings)
    torch.rand(5)
    second = train_classifier(data, 2, seed=1, **settings)
    other = train_classifier(data, 2, seed=2, **settings)
    assert torch.equal(first.head.weight, second.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_training_leaves_the_random_numbers_of_others_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    train_classifier(discs(40), 2, **(QUICK | {"steps": 2}))
    assert torch.equal(torch.rand(3), expected)


def test_rare_class_is_not_given_up():
    data = discs(620)
    rare = (data.labels == 0) | (torch.arange(620) < 20)  # 310 to 10
    classifier = train_classifier(LabelledImages(data.images[rare], data.labels[rare]), 2, **QUICK)
    held_out = discs(100, seed=1)
    right = scores(classifier, held_out.images).argmax(dim=1) == held_out.labels
    assert min(float(right[held_out.labels == label].double().mean()) for label in (0, 1)) > 0.85


def test_scores_are_probabilities_and_do_not_depend_on_the_chunk():
    data = discs(40, 3)
    classifier = train_classifier(data, 3, **(QUICK | {"steps": 5}))
    whole = scores(classifier, data.images)
    torch.testing.assert_close(whole.sum(dim=1), torch.ones(40, dtype=torch.float64))
    torch.testing.assert_close(scores(classifier, data.images, chunk=7), whole)


def test_images_of_other_sizes_are_averaged_to_the_working_size():
    data = discs(40)
    classifier = train_classifier(data, 2, **(QUICK | {"steps": 5}))
    larger = F.interpolate(data.images, scale_factor=3, mode="nearest")
    torch.testing.assert_close(scores(classifier, larger), scores(classifier, data.images))


def test_collected_images_are_averaged_and_bytes_brought_to_the_unit_range():
    white, half = torch.full((1, 64, 96), 255, dtype=torch.uint8), torch.full((1, 40, 40), 0.5)
    data = labelled_images([(white, 1), (half, 0)], size=32)
    assert data.images.shape == (2, 1, 32, 32)
    assert data.images[:, 0, 0, 0].tolist() == [1.0, 0.5]
    assert data.labels.tolist() == [1, 0]


def test_flipping_shows_both_sides():
    generator = torch.Generator().manual_seed(0)
    left = torch.rand(60, 1, 32, 32, generator=generator) * 0.1
    left[:30, :, :, :8] += 0.5
    left[30:, :, :, 24:] += 0.5  # mirrored, the classes are the same
    data = LabelledImages(left, torch.arange(60) // 30)
    assert accuracy(train_classifier(data, 2, **QUICK), data) == 1
    assert accuracy(train_classifier(data, 2, flip=True, **QUICK), data) < 0.8


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "no images"),
        ([(torch.zeros(1, 8, 8), None)], "image 0 has no class"),
        ([(torch.zeros(1, 8, 8), 0), (torch.zeros(3, 8, 8), 1)], "image 1 has 3 channels, those before it 1"),
        ([(torch.full((1, 8, 8), 2.0), 0)], r"values lie in \[2, 2\]"),
        ([(torch.full((1, 8, 8), torch.nan), 0)], "values lie in"),
        ([(torch.zeros(2, 8, 8), 0)], "use gray"),
        ([(torch.zeros(8, 8), 0)], "use gray"),
    ],
)
def test_images_that_cannot_be_classified_are_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        labelled_images(pairs)


@pytest.mark.parametrize(
    ("num_classes", "settings", "message"),
    [
        (1, {}, r"labels lie in 0..1, the 1 classes"),
        (3, {}, r"images of the 3 classes are \[5, 5, 0\]"),
        (2, {"size": 16}, "size=16"),
        (2, {"steps": 0}, "steps=0"),
        (2, {"batch_size": 1}, "batch_size=1"),
    ],
)
def test_training_that_cannot_work_is_refused(num_classes, settings, message):
    with pytest.raises(ValueError, match=message):
        train_classifier(discs(10), num_classes, **settings)


def test_one_label_an_image_is_needed():
    with pytest.raises(ValueError, match=r"\(4, 1, 8, 8\) and \(3,\)"):
        class_counts(LabelledImages(torch.zeros(4, 1, 8, 8), torch.zeros(3, dtype=torch.long)), 2)
