import numpy as np
import torch

from medfusion_monai.report.pictures import caption_rows, drawable, picture_of_rows, spread


def test_picture_leaves_room_for_its_longest_caption():
    grid = torch.zeros(3, 18, 18)  # one image of 14 pixels within its margins, nine times enlarged
    narrow, wide = (caption_rows(grid, [caption], (14, 14)) for caption in ("a", "sample: " + "name_" * 12))
    assert narrow.width == 210 + 9 * 18
    picture = torch.from_numpy(np.array(wide))
    dark = (picture.float().mean(2) < 128).any(0).nonzero()[:, 0]
    margin = wide.width - 9 * 18
    assert margin > 210
    assert dark[dark < margin].max() < margin - 4  # the text ends before the images begin


def test_large_images_are_reduced_and_small_ones_enlarged():
    large = picture_of_rows({"large": torch.zeros(2, 3, 512, 256)})
    small = picture_of_rows({"small": torch.zeros(2, 1, 32, 32)})
    assert large.size == (210 + 2 * 98 + 2, 192 + 4)
    assert small.size == (210 + 4 * (2 * 34 + 2), 4 * 36)


def test_rows_may_differ_in_length():
    picture = picture_of_rows([("three", torch.zeros(3, 1, 128, 128)), ("one", torch.zeros(1, 1, 128, 128))])
    pixels = np.array(picture)[:, 210:]
    assert (pixels[200, [64, 200, 330]] == [[0, 0, 0], [255, 255, 255], [255, 255, 255]]).all()


def test_captions_keep_to_the_letters_of_the_font():
    assert drawable("Größe, façade, 心 wide") == "Grosse, facade, ? wide"


def test_positions_are_spread_from_first_to_last():
    assert spread(3) == [0, 1, 2]
    assert spread(100, 4) == [0, 33, 66, 99]
