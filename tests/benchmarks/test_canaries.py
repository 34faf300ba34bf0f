import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
canaries = import_module("canaries")


@pytest.fixture(scope="module")
def coded():
    return canaries.Coded(40, seed=3, repeats={8: 2, 2: 3})


def test_set_has_as_many_images_as_asked_with_its_canaries_repeated(coded):
    assert len(coded.images) == 40
    assert len(coded.distinct) == 40 - 2 * 7 - 3
    assert torch.bincount(coded.order).tolist() == coded.times.tolist() == [8] * 2 + [2] * 3 + [1] * 18


def test_codes_differ_in_five_bits_at_least():
    codes = canaries.draw_codes(300, np.random.default_rng(0))
    differences = (codes[:, None] != codes).sum(dim=2).fill_diagonal_(canaries.BITS)
    assert differences.min() >= canaries.DISTANCE


def test_code_is_read_back_through_noise_and_blur(coded):
    noise = 0.1 * torch.randn(coded.distinct.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(canaries.read_codes(coded.distinct), coded.codes)
    assert canaries.copied(coded.distinct * 0.9 + 0.05 + noise, coded).tolist() == list(range(len(coded.distinct)))


def test_image_with_two_wrong_bits_is_no_copy(coded):
    images = coded.distinct[:3].clone()
    for image, wrong in zip(images, (0, 1, 2), strict=True):
        code = coded.codes[0].clone()
        code[:wrong] = 1 - code[:wrong]
        canaries.write_code(image[0], code)
    assert canaries.copied(images, coded).tolist() == [0, 0, -1]


def test_body_tells_a_copy_from_another_image_with_its_code(coded):
    images = torch.stack([coded.distinct[0] + 0.01, coded.distinct[1].clone()])
    canaries.write_code(images[1][0], coded.codes[0])
    places = canaries.copied(images, coded)
    assert places.tolist() == [0, 0]
    assert canaries.body_is_copied(images, places, coded).tolist() == [True, False]


def test_images_of_other_seeds_have_no_code_of_the_set(coded):
    assert (canaries.copied(canaries.Coded(200, seed=4).images, coded) == -1).all()
