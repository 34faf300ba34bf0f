import pytest
import torch
from torch_fidelity import metric_kid

from medfusion_monai.evaluation.metrics.kid import kernel_distance, kernel_figure


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_torch_fidelity(real, fake):
    result = metric_kid.kid_features_to_metric(
        real, fake, kid_subsets=1, kid_subset_size=len(real), kid_kernel="poly", kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1.0, rng_seed=0, verbose=False,
    )  # fmt: skip
    return result[metric_kid.KEY_METRIC_KID_MEAN]


def test_distance_of_single_values_has_the_closed_form():
    # kernels of 0 and 0, 1 and 1, 0 and 1: 1, 8 and 1
    assert kernel_distance(torch.zeros(3, 1), torch.ones(2, 1)) == 1 + 8 - 2


def test_equal_sets_are_at_no_positive_distance():
    features = normal(100, 16)
    assert kernel_distance(features, features.flip(0)) <= 0


def test_distance_of_equal_distributions_is_unbiased():
    distances = torch.tensor([kernel_distance(normal(30, 3, seed=i), normal(20, 3, seed=-i)) for i in range(1, 400)])
    assert abs(distances.mean()) < 3 * distances.std() / 20


@pytest.mark.parametrize("chunk", [37, 1024])
def test_distance_agrees_with_torch_fidelity(chunk):
    real, fake = normal(150, 64).relu(), (1.2 * normal(150, 64, seed=1) + 0.1).relu()
    assert kernel_distance(real, fake, chunk=chunk) == pytest.approx(by_torch_fidelity(real, fake), abs=1e-5, rel=1e-4)


def test_interval_is_as_wide_as_the_distance_varies_from_draw_to_draw():
    draws = [kernel_distance(normal(200, 4, seed=2 * i), normal(200, 4, seed=2 * i + 1) + 0.5) for i in range(150)]
    figure = kernel_figure(normal(200, 4, seed=998), normal(200, 4, seed=999) + 0.5, replicates=200)
    assert figure.low < figure.value < figure.high
    assert (figure.high - figure.low) / 3.92 == pytest.approx(float(torch.tensor(draws).std()), rel=0.3)


def test_two_samples_give_no_broken_interval():
    figure = kernel_figure(normal(2, 3), normal(2, 3, seed=1), replicates=50)
    assert torch.tensor(figure[:3]).isfinite().all()
