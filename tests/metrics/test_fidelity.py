import pytest
import torch

from medfusion_monai.metrics.fidelity import improved_precision_recall


@pytest.mark.parametrize("chunk", [7, 1024])
def test_recorded_precision_and_recall_are_reproduced(chunk, vectors):
    tensors, _ = vectors("precision_recall_a")
    precision, recall = improved_precision_recall(tensors["real"], tensors["fake"], chunk=chunk)
    assert precision == pytest.approx(tensors["precision"].item(), rel=1e-5)
    assert recall == pytest.approx(tensors["recall"].item(), rel=1e-5)


def test_equal_sets_have_full_precision_and_recall():
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    assert improved_precision_recall(features, features) == (1.0, 1.0)


def test_mode_collapse_lowers_recall_and_not_precision():
    real = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    precision, recall = improved_precision_recall(real, 0.01 * torch.randn(200, 2))
    assert precision > 0.95
    assert recall < 0.1


def test_sets_far_apart_share_nothing():
    real = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    assert improved_precision_recall(real, real + 100) == (0.0, 0.0)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="3 real, 9 fake"):
        improved_precision_recall(torch.randn(3, 2), torch.randn(9, 2))
