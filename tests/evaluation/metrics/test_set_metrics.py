import doctest

import pytest
import torch

from medfusion_monai.evaluation.metrics import set_metrics
from medfusion_monai.evaluation.metrics.set_metrics import SetValues, measure_images, own_batches


def test_examples_in_the_docstrings_give_what_they_say():
    result = doctest.testmod(set_metrics)
    assert result.attempted >= 4
    assert result.failed == 0


def test_one_process_has_all_batches():
    assert own_batches(7, 3) == [range(3), range(3, 6), range(6, 7)]
    assert own_batches(0, 3) == []


@pytest.mark.parametrize(("count", "own"), [(7, [[3, 3], [1]]), (4, [[3], [1]]), (3, [[3], []]), (0, [[], []])])
def test_processes_have_the_batches_of_one_in_the_order_of_the_ranks(count, own, two_processes):
    shares = two_processes(lambda rank: own_batches(count, 3))
    assert [[len(batch) for batch in batches] for batches in shares] == own
    assert shares[0] + shares[1] == own_batches(count, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.half])
@pytest.mark.parametrize("count", [7, 4, 2, 0])
def test_two_processes_measure_the_values_of_one_in_the_order_of_the_set(count, dtype, two_processes):
    batches = []

    def measure(places):
        batches.append(list(places))
        return torch.tensor([[k, 1 / (k + 1) + len(places)] for k in places], dtype=dtype)

    def work(rank):
        batches.clear()
        values = measure_images(measure, count, 2, [2], dtype=dtype)
        return values.dtype == dtype, values.tolist(), batches

    (right_type, whole, all_batches) = work(0)
    [(_, first, own), (_, second, others)] = two_processes(work)
    assert right_type
    assert first == second == whole
    assert len(whole) == count
    assert own + others == all_batches


def test_error_of_one_process_is_raised_in_all(two_processes):
    def measure(places):
        if 3 in places:
            raise ValueError("image 3 is no image")
        return torch.zeros(len(places), 1)

    errors = two_processes(lambda rank: measure_images(measure, 4, 2, [1]))
    assert [str(error) for error in errors] == ["image 3 is no image"] * 2


def test_reset_forgets_the_values():
    metric = SetValues()
    metric.update(torch.ones(3, 2))
    metric.reset()
    metric.update(torch.zeros(1, 2))
    assert metric.compute().tolist() == [[0.0, 0.0]]
