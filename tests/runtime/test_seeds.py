import numpy as np
import pytest
import torch

from medfusion_monai.runtime.seeds import derive_seed, generators, randn


def test_seed_of_given_parts_never_changes():
    assert derive_seed("sample", 3) == 6411765019191889582  # top 63 bits of sha256("('sample', 3)")


def test_different_parts_give_different_seeds():
    parts = [("a", 1), ("a", 2), ("b", 1), (1, "a"), ("a",), ("a", 1, 1), ("a", 11)]
    assert len({derive_seed(*part) for part in parts}) == len(parts)


def test_seeds_fit_a_torch_generator():
    seeds = [derive_seed(index) for index in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len(generators(seeds)) == 200


def test_sample_gets_the_same_numbers_in_any_batch():
    together = randn((2, 3), generators([7, 8, 9]))
    reordered = randn((2, 3), generators([9, 7]))
    assert torch.equal(together[0], randn((2, 3), generators([7]))[0])
    assert torch.equal(together[[2, 0]], reordered)
    assert not torch.equal(together[0], together[1])


def test_second_draw_goes_on_where_the_first_ended():
    sources, alone = generators([1, 2]), np.random.default_rng(2)
    first, second = randn((4,), sources), randn((4,), sources)
    assert np.array_equal(first[1], alone.standard_normal(4, dtype=np.float32))
    assert np.array_equal(second[1], alone.standard_normal(4, dtype=np.float32))


def test_all_bits_of_a_seed_count():
    low, high = randn((4,), generators([1, 1 + 2**32]))
    assert not torch.equal(low, high)


def test_global_random_state_is_neither_used_nor_changed():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = randn((3,), generators([5]))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(first, randn((3,), generators([5])))


def test_values_are_standard_normal():
    values = randn((50,), generators(derive_seed("normal", index) for index in range(2000)))
    assert values.mean().item() == pytest.approx(0.0, abs=0.015)
    assert values.std().item() == pytest.approx(1.0, abs=0.015)
