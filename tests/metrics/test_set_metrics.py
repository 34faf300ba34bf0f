import doctest

import pytest
import torch

from medfusion_monai.metrics import set_metrics
from medfusion_monai.metrics.fidelity import density_coverage, improved_precision_recall, inception_score
from medfusion_monai.metrics.frechet import frechet_distance
from medfusion_monai.metrics.kernel import kernel_distance
from medfusion_monai.metrics.set_metrics import (
    DensityCoverage,
    FrechetDistance,
    ImageSimilarity,
    InceptionScore,
    KernelDistance,
    PrecisionRecall,
)
from medfusion_monai.metrics.similarity import ms_ssim, mse, psnr, ssim


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


REAL, FAKE = normal(60, 6) + 3, normal(45, 6, seed=1) * 1.1 + 3


def filled(metric, real=REAL, fake=FAKE, batch_size=16):
    for features, is_real in ((real, True), (fake, False)):
        for part in features.split(batch_size):
            metric.update(part, real=is_real)
    return metric


def test_examples_in_the_docstrings_give_what_they_say():
    result = doctest.testmod(set_metrics)
    assert result.attempted >= 16
    assert result.failed == 0


def test_batches_give_the_frechet_distance_of_the_whole():
    distance = filled(FrechetDistance(6)).compute()
    assert distance.item() == pytest.approx(frechet_distance(REAL, FAKE), rel=1e-9)


def test_batches_give_the_kernel_distance_of_the_whole():
    assert filled(KernelDistance()).compute().item() == pytest.approx(kernel_distance(REAL, FAKE), rel=1e-5)


def test_batches_give_precision_and_recall_of_the_whole():
    values = filled(PrecisionRecall(k=4)).compute()
    assert tuple(values) == ("precision", "recall")
    assert [value.item() for value in values.values()] == pytest.approx(improved_precision_recall(REAL, FAKE, k=4))


def test_batches_give_density_and_coverage_of_the_whole():
    values = filled(DensityCoverage(k=4)).compute()
    assert tuple(values) == ("density", "coverage")
    assert [value.item() for value in values.values()] == pytest.approx(density_coverage(REAL, FAKE, k=4))


def test_batches_give_the_inception_score_of_the_whole():
    logits, metric = normal(60, 12), InceptionScore(splits=3)
    for part in logits.split(16):
        metric.update(part)
    assert metric.compute().item() == pytest.approx(inception_score(logits, splits=3), rel=1e-5)


@pytest.mark.parametrize("function", [ms_ssim, ssim, mse, psnr])
def test_batches_of_unequal_size_give_the_mean_of_all_images(function):
    images = normal(10, 1, 48, 48).sigmoid()
    others = (images + 0.1 * normal(10, 1, 48, 48, seed=1)).clamp(0, 1)
    metric = ImageSimilarity(function)
    for part in (slice(0, 7), slice(7, 10)):
        metric.update(others[part], images[part])
    assert metric.compute().item() == pytest.approx(function(others, images).mean().item(), rel=1e-5)


def test_frechet_distance_keeps_no_features():
    metric = FrechetDistance(6)
    sizes = [sum(getattr(filled(metric), name).numel() for name in metric._defaults) for _ in range(2)]
    assert sizes == [2 * (1 + 6 + 36)] * 2


@pytest.mark.parametrize("metric", [lambda: FrechetDistance(6), KernelDistance, PrecisionRecall, DensityCoverage])
def test_halves_of_two_processes_give_the_figure_of_the_whole(metric):
    whole, half = filled(metric()), filled(metric(), REAL[:30], FAKE[:20])
    half.merge_state(filled(metric(), REAL[30:], FAKE[20:]))
    torch.testing.assert_close(half.compute(), whole.compute(), rtol=1e-5, atol=1e-8)


def test_reset_forgets_the_features():
    metric = filled(PrecisionRecall(), FAKE + 50, FAKE)
    metric.reset()
    values = filled(metric).compute()
    assert values["precision"] > 0


def test_set_without_samples_is_refused():
    metric = FrechetDistance(6)
    metric.update(REAL, real=True)
    with pytest.raises(ValueError, match="0 fake ones received"):
        metric.compute()
