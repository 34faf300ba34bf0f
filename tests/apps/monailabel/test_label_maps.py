import numpy as np
import pytest
import torch

from medfusion_monai.apps.monailabel.label_maps import change_map, marked_map, smoothed_difference


def test_brighter_pixels_appear_and_darker_ones_disappear():
    difference = torch.tensor([[[0.2, -0.2, 0.04], [0.0, 0.06, -0.04]]])
    assert change_map(difference, 0.05).tolist() == [[1, 2, 0], [0, 1, 0]]


def test_colours_count_by_their_mean_change():
    difference = torch.tensor([0.3, -0.1, -0.1]).reshape(3, 1, 1)
    assert change_map(difference, 0.16).tolist() == [[1]]
    assert change_map(-difference, 0.16).tolist() == [[2]]
    assert change_map(difference, 0.17).tolist() == [[0]]


def test_label_maps_are_bytes():
    assert change_map(torch.zeros(1, 2, 3)).dtype == marked_map(torch.zeros(2, 3), 0.5).dtype == np.uint8


def test_values_at_the_threshold_are_not_marked():
    assert marked_map(torch.tensor([[0.5, 0.6]]), 0.5).tolist() == [[0, 1]]


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold must be"):
        change_map(torch.zeros(1, 2, 2), threshold)


def test_smoothing_keeps_constants_and_lowers_single_pixels():
    assert torch.allclose(smoothed_difference(torch.full((3, 9, 9), -0.3), 2.0), torch.tensor(-0.3))
    single = torch.zeros(1, 9, 9)
    single[0, 4, 4] = 1.0
    assert smoothed_difference(single, 1.0).max() == pytest.approx(1 / (2 * torch.pi), rel=0.02)
    assert torch.equal(smoothed_difference(single, 0.0), single)
