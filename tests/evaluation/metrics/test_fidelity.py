import math

import prdc
import pytest
import torch
from torch_fidelity.metric_prc import prc_features_to_metric

from medfusion_monai.evaluation.metrics.fidelity import measure_fidelity
from medfusion_monai.evaluation.metrics.precision_recall import density_coverage, improved_precision_recall

KEYS = {"fid", "kid", "precision", "recall", "density", "coverage"}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def two_sets(count, other, dimensions):
    return normal(count, dimensions).relu(), (1.05 * normal(other, dimensions, seed=1) + 0.05).relu()


@pytest.mark.parametrize("chunk", [7, 1024])
def test_recorded_precision_and_recall_are_reproduced(chunk, vectors):
    tensors, _ = vectors("precision_recall_a")
    precision, recall = improved_precision_recall(tensors["real"], tensors["fake"], chunk=chunk)
    assert precision == pytest.approx(tensors["precision"].item(), rel=1e-5)
    assert recall == pytest.approx(tensors["recall"].item(), rel=1e-5)


@pytest.mark.parametrize(("count", "other", "dimensions"), [(200, 128, 64), (60, 80, 100), (300, 200, 2)])
def test_precision_and_recall_agree_with_torch_fidelity(count, other, dimensions):
    real, fake = two_sets(count, other, dimensions)
    expected = prc_features_to_metric(
        fake, real, prc_neighborhood=3, prc_batch_size=1000, save_cpu_ram=False, verbose=False
    )
    assert 0 < expected["precision"] + expected["recall"] < 2
    assert improved_precision_recall(real, fake, chunk=33) == pytest.approx(
        (expected["precision"], expected["recall"]), abs=1e-3
    )


@pytest.mark.parametrize(("count", "other", "dimensions"), [(200, 128, 64), (60, 80, 100), (300, 200, 2)])
def test_density_and_coverage_agree_with_prdc(count, other, dimensions):
    real, fake = two_sets(count, other, dimensions)
    expected = prdc.compute_prdc(real.numpy(), fake.numpy(), nearest_k=5)
    assert 0 < expected["coverage"] < 1
    assert density_coverage(real, fake, chunk=33) == pytest.approx(
        (expected["density"], expected["coverage"]), abs=1e-3
    )


def test_equal_sets_have_full_precision_and_recall():
    features = normal(50, 4)
    assert improved_precision_recall(features, features) == (1.0, 1.0)


def test_mode_collapse_lowers_recall_and_not_precision():
    precision, recall = improved_precision_recall(normal(200, 2), 0.01 * normal(200, 2, seed=1))
    assert precision > 0.95
    assert recall < 0.1


def test_mode_collapse_lowers_coverage_and_not_density():
    density, coverage = density_coverage(normal(200, 2), 0.01 * normal(200, 2, seed=1))
    assert density > 0.5
    assert coverage < 0.1


def test_sets_far_apart_share_nothing():
    real = normal(20, 3)
    assert improved_precision_recall(real, real + 100) == (0.0, 0.0)
    assert density_coverage(real, real + 100) == (0.0, 0.0)


@pytest.mark.parametrize("figure", [improved_precision_recall, density_coverage])
def test_too_few_samples_are_refused(figure):
    with pytest.raises(ValueError, match="3 real, 9 fake"):
        figure(normal(3, 2), normal(9, 2), k=3)


def test_every_figure_has_an_interval_around_it():
    real, fake = two_sets(150, 120, 16)
    figures = measure_fidelity(real, fake)
    assert figures.keys() == KEYS
    for name, figure in figures.items():
        assert figure.low < figure.value < figure.high, name
        assert "120" in figure.note, name


def test_intervals_hold_the_mean_over_other_sets_of_these_counts():
    draws = [(normal(40, 4, seed=2 * seed), normal(40, 4, seed=2 * seed + 1) + 0.5) for seed in range(120)]
    figures = [measure_fidelity(*sets, replicates=30, seed=seed) for seed, sets in enumerate(draws)]
    for name in ("precision", "recall", "density", "coverage"):
        mean = sum(each[name].value for each in figures) / len(figures)
        share = sum(each[name].low <= mean <= each[name].high for each in figures) / len(figures)
        assert share >= 0.9, name


def test_sets_whose_halves_are_too_small_have_no_interval():
    figures = measure_fidelity(*two_sets(9, 30, 4))
    assert figures["precision"].low is not None
    assert figures["density"].low is None
    assert "needs more than 5 in each half" in figures["density"].note


def test_large_sets_have_intervals_of_fewer_halves():
    real, fake = two_sets(1001, 40, 2)
    for name in ("precision", "density"):
        assert measure_fidelity(real, fake)[name].note == "40 samples against 1001; interval from 20 pairs of halves"
        assert measure_fidelity(real[1:], fake)[name].note == "40 samples against 1000"


def test_figures_are_those_of_the_single_functions():
    real, fake = two_sets(60, 50, 8)
    figures = measure_fidelity(real, fake, k=4, density_k=6)
    precision, recall = improved_precision_recall(real, fake, k=4)
    density, coverage = density_coverage(real, fake, k=6)
    values = [figures[name].value for name in ("precision", "recall", "density", "coverage")]
    assert values == pytest.approx([precision, recall, density, coverage])


def test_seed_decides_the_intervals():
    sets = two_sets(30, 40, 4)
    first, again, other = (measure_fidelity(*sets, seed=seed, replicates=20) for seed in (1, 1, 2))
    assert first == again
    assert all(first[name].high != other[name].high for name in ("fid", "kid"))


def test_no_replicates_leave_the_intervals_out():
    figures = measure_fidelity(*two_sets(30, 40, 4), replicates=0)
    assert all(figure.low is None and figure.value is not None for figure in figures.values())


def test_fewer_samples_than_features_are_noted_and_give_no_broken_figure():
    figures = measure_fidelity(*two_sets(100, 20, 64))
    assert "20 samples for 64 features: the covariance is singular" in figures["fid"].note
    assert all(math.isfinite(end) for figure in figures.values() for end in figure[:3])


def test_samples_for_a_full_covariance_are_not_noted():
    assert measure_fidelity(*two_sets(40, 30, 4))["fid"].note == "30 samples against 40"


@pytest.mark.parametrize(("count", "missing"), [(3, {"precision", "recall", "density", "coverage"}),
                                                (5, {"density", "coverage"}), (6, set())])  # fmt: skip
def test_sets_too_small_for_a_neighbourhood_give_no_figure_of_it(count, missing):
    figures = measure_fidelity(normal(50, 4), normal(count, 4, seed=1))
    assert {name for name, figure in figures.items() if figure.value is None} == missing
    assert all(f"{count} samples against 50" in figures[name].note for name in missing)


@pytest.mark.parametrize("which", ["real", "generated"])
def test_constant_images_have_no_neighbourhoods_and_say_so(which):
    constant, features = torch.ones(20, 4), normal(20, 4)
    figures = measure_fidelity(*((constant, features) if which == "real" else (features, constant)))
    assert all(f"all {which} features are equal" in figure.note for figure in figures.values())
    assert {name for name, figure in figures.items() if figure.value is None} == KEYS - {"fid", "kid"}
    assert figures["fid"].value == pytest.approx(
        float(features.T.cov().trace() + (features.mean(dim=0) - 1).square().sum())
    )


@pytest.mark.parametrize(
    ("real", "fake", "message"),
    [
        (normal(9, 4), normal(1, 4), "at least 2 samples: 9 real, 1 generated"),
        (normal(9, 4), normal(9, 5), r"\(9, 4\) and \(9, 5\)"),
        (normal(9, 4), normal(9, 4, seed=1).log(), "of 9 generated samples are not finite"),
        (normal(9, 4) * 1e20, normal(9, 4), "9 of 9 real samples are not finite or above 1e\\+15"),
    ],
)
def test_features_that_give_no_figure_are_refused(real, fake, message):
    with pytest.raises(ValueError, match=message):
        measure_fidelity(real, fake)
