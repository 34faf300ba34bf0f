"""Pictures of changes: their colours and scale."""

import numpy as np
import pytest
import torch

from medfusion_monai.studio.difference import CHANGE, change_picture, legend_stops, map_picture, scale_of


def changed(by, channels=1):
    """Return the colours of a picture whose left half stays and whose right half changes, and its scale."""
    before = torch.full((channels, 4, 4), 0.5)
    after = before.clone()
    after[..., 2:] += by
    picture, scale = change_picture(before, after)
    return np.asarray(picture).astype(int), scale


def test_unchanged_pixels_are_nearly_white():
    pixels, _ = changed(0.2)
    assert pixels[0, 0].min() > 240


def test_brighter_is_red_and_darker_is_blue():
    brighter, darker = changed(0.2)[0][0, 3], changed(-0.2)[0][0, 3]
    assert brighter[0] > brighter[2] + 50
    assert darker[2] > darker[0] + 50


def test_change_of_a_colour_image_is_the_mean_of_its_channels():
    np.testing.assert_array_equal(changed(0.2, channels=3)[0], changed(0.2)[0])


@pytest.mark.parametrize(("largest", "scale"), [(0.0, 0.05), (0.01, 0.05), (0.11, 0.15), (-0.15, 0.15), (1.0, 1.0)])
def test_scale_is_the_next_multiple_of_a_twentieth(largest, scale):
    assert scale_of(torch.tensor([[0.0, largest]])) == scale


def test_the_largest_change_has_the_last_colour_of_the_legend():
    pixels, scale = changed(0.2)
    assert scale == 0.2
    assert "#{:02x}{:02x}{:02x}".format(*pixels[0, 3]) == legend_stops(CHANGE)[-1]


def test_images_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"one shape, received \(1, 4, 4\), \(1, 4, 5\)"):
        change_picture(torch.zeros(1, 4, 4), torch.zeros(1, 4, 5))


def test_anomaly_map_is_dark_where_nothing_is_unusual():
    anomaly = torch.zeros(1, 4, 4)
    anomaly[0, 0, 0] = 0.3
    picture, scale = map_picture(anomaly)
    pixels = np.asarray(picture).astype(int)
    assert scale == 0.3
    assert pixels[3, 3].sum() < 30 < 500 < pixels[0, 0].sum()
