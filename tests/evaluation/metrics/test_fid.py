import pytest
import torch
from torch_fidelity import metric_fid

from medfusion_monai.evaluation.metrics.fid import (
    frechet_distance,
    frechet_figure,
    gaussian_distance,
    gaussian_of_moments,
    gaussian_of_samples,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_torch_fidelity(real, fake):
    statistics = [metric_fid.fid_features_to_statistics(features) for features in (real, fake)]
    return metric_fid.fid_statistics_to_metric(*statistics, verbose=False)[metric_fid.KEY_METRIC_FID]


def test_equal_sets_are_at_distance_zero():
    for features in (normal(100, 8), normal(8, 100)):
        assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)


def test_two_gaussians_of_aligned_axes_have_the_closed_form():
    first = gaussian_of_moments(torch.zeros(2), torch.diag(torch.tensor([4.0, 9.0])))
    second = gaussian_of_moments(torch.tensor([3.0, 4.0]), torch.diag(torch.tensor([1.0, 25.0])))
    assert gaussian_distance(first, second) == pytest.approx(25 + (2 - 1) ** 2 + (3 - 5) ** 2)


def test_two_gaussians_of_turned_axes_have_the_closed_form():
    first, second = torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([[5.0, -2.0], [-2.0, 1.0]])
    # the trace of the root of a 2x2 matrix with positive eigenvalues: their sum squared is trace + 2 sqrt(det)
    product = first @ second
    root = (product.trace() + 2 * torch.linalg.det(product).sqrt()).sqrt()
    gaussians = [gaussian_of_moments(torch.zeros(2), covariance) for covariance in (first, second)]
    assert gaussian_distance(*gaussians) == pytest.approx(float(first.trace() + second.trace() - 2 * root), rel=1e-6)


def test_shift_of_a_set_is_its_squared_length():
    features = normal(50, 6)
    assert frechet_distance(features, features + 2) == pytest.approx(6 * 4, rel=1e-5)


@pytest.mark.parametrize(("count", "other", "dimensions"), [(200, 128, 64), (60, 50, 128), (300, 40, 128)])
def test_distance_agrees_with_torch_fidelity(count, other, dimensions):
    real, fake = normal(count, dimensions).relu(), (1.2 * normal(other, dimensions, seed=1) + 0.1).relu()
    expected = by_torch_fidelity(real, fake)
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(fake, real) == pytest.approx(expected, rel=1e-6)


def test_few_samples_give_the_distance_of_their_singular_covariances():
    real, fake = normal(12, 30), normal(9, 30, seed=1)
    gaussians = [gaussian_of_moments(x.double().mean(dim=0), x.double().T.cov()) for x in (real, fake)]
    assert frechet_distance(real, fake) == pytest.approx(gaussian_distance(*gaussians), rel=1e-9)


def test_moments_of_a_set_far_from_zero_are_kept():
    gaussian = gaussian_of_samples(normal(5000, 3).double() + 1e6)
    assert torch.allclose(gaussian.factor @ gaussian.factor.T, normal(5000, 3).double().T.cov(), atol=1e-8)


@pytest.mark.parametrize("dimensions", [3, 40])
def test_weights_count_samples_as_often_as_they_say(dimensions):
    real, fake, weights = normal(20, dimensions), normal(30, dimensions, seed=1), torch.arange(30) % 3
    expected = frechet_distance(real, fake.repeat_interleave(weights, dim=0))
    assert frechet_distance(real, fake, fake_weights=weights.double()) == pytest.approx(expected, rel=1e-9)


def test_interval_is_as_wide_as_the_distance_varies_from_draw_to_draw():
    draws = [frechet_distance(normal(300, 4, seed=2 * i), normal(300, 4, seed=2 * i + 1) + 0.5) for i in range(150)]
    figure = frechet_figure(normal(300, 4, seed=998), normal(300, 4, seed=999) + 0.5, replicates=200)
    assert figure.low < figure.value < figure.high
    assert (figure.high - figure.low) / 3.92 == pytest.approx(float(torch.tensor(draws).std()), rel=0.3)


def test_interval_of_no_distance_ends_at_zero():
    figure = frechet_figure(normal(50, 3), normal(50, 3))
    assert figure.low == 0


def test_costly_distances_take_ten_replicates_and_say_so(monkeypatch):
    monkeypatch.setattr("medfusion_monai.evaluation.metrics.fid._COSTLY", 2)
    figure = frechet_figure(normal(50, 3), normal(50, 3) + 1, replicates=100)
    assert figure.note == "interval from 10 resampled sets"
    assert figure == frechet_figure(normal(50, 3), normal(50, 3) + 1, replicates=10)._replace(note=figure.note)
