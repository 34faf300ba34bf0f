import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medfusion_monai.evaluation.metrics.kid import kernel_figure
from medfusion_monai.evaluation.metrics.neighbours import (
    nearest_neighbours,
    neighbour_distances,
    neighbour_rows,
    neighbourhoods,
    squared_distances,
)
from medfusion_monai.evaluation.metrics.precision_recall import density_coverage, improved_precision_recall


class LargestTensor(TorchDispatchMode):
    """Notes the number of values of the largest tensor that is made while it is on."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.numel())
        return result


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def direct(first, second):
    return (first.double()[:, None] - second.double()).square().sum(dim=2)


def test_distances_of_a_triangle_are_its_sides():
    corners = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    assert torch.equal(squared_distances(corners, corners), torch.tensor([[0.0, 9, 16], [9, 0, 25], [16, 25, 0]]))


def test_distances_of_near_samples_far_from_the_origin_are_exact():
    first = normal(40, 64) + 1000
    second = first + 0.01 * normal(40, 64, seed=1)
    expected = direct(first, second)
    assert torch.allclose(squared_distances(first, second).double(), expected, rtol=1e-5)
    assert (squared_distances(first, first).diagonal() == 0).all()


@pytest.mark.parametrize("chunk", [7, 50, 1024])
def test_neighbours_are_those_of_the_whole_matrix(chunk):
    features = normal(50, 6)
    expected = direct(features, features).fill_diagonal_(torch.inf).sort(dim=1).values[:, :4]
    assert torch.allclose(neighbour_distances(features, 4, chunk).double(), expected, rtol=1e-4)


def test_equal_sample_is_a_neighbour_at_distance_zero():
    distances = neighbour_distances(torch.tensor([[5.0], [5.0], [7.0]]), 2)
    assert distances.tolist() == [[0, 4], [0, 4], [4, 4]]


def test_border_of_a_ball_is_inside_for_precision_and_outside_for_density():
    real, fake = torch.tensor([[0.0], [1.0], [9.0]]), torch.tensor([[-1.0], [-1.5], [-8.0]])
    shares = neighbourhoods(real, fake, k=1, density_k=1)
    # balls of radius 1 around 0 and 1, of 8 around 9; the first generated sample lies on the first one's border
    assert shares.precision.tolist() == [True, False, False]
    assert shares.density.tolist() == [0, 0, 0]
    assert shares.coverage.tolist() == [False, False, False]


@pytest.mark.parametrize("offset", [0.0, 1.0e4])
def test_copies_of_real_samples_count_the_same_in_any_block(offset):
    real = normal(90, 32) + offset
    fake = real.flip(0)
    assert improved_precision_recall(real, fake, chunk=13) == (1, 1)
    # A sample lies inside its own ball and those of the k - 1 samples that have it as a nearer than k-th neighbour.
    assert density_coverage(real, fake, k=4, chunk=13) == (1, 1)


def test_equal_sets_of_many_copies_have_full_precision_and_recall():
    features = normal(9, 16).repeat(11, 1) * 3 + 50
    assert improved_precision_recall(features, features.flip(0), chunk=16) == (1, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_features_of_any_precision_are_taken(dtype):
    assert improved_precision_recall(normal(30, 4).to(dtype), normal(30, 4).to(dtype)) == (1, 1)


@pytest.mark.parametrize("figure", [improved_precision_recall, density_coverage, kernel_figure])
def test_no_tensor_grows_with_the_square_of_the_count(figure):
    sizes = {}
    for count in (2000, 4000):
        with LargestTensor() as largest:
            figure(normal(count, 2), normal(count, 2, seed=1))
        sizes[count] = largest.size
    assert sizes[4000] <= 2 * sizes[2000]
    assert sizes[4000] < 4000 * 4000 / 10


@pytest.mark.parametrize("chunk", [7, 1024])
def test_nearest_references_are_those_of_all_distances(chunk):
    queries, references = normal(30, 16), normal(50, 16, seed=1)
    expected = torch.cdist(queries.double(), references.double()).topk(3, largest=False)
    distances, places = nearest_neighbours(queries, references, k=3, chunk=chunk)
    assert torch.equal(places, expected.indices)
    torch.testing.assert_close(distances, expected.values)


def test_nearest_references_agree_with_scikit_learn():
    neighbors = pytest.importorskip("sklearn.neighbors", reason="scikit-learn is not installed")
    queries, references = normal(40, 8), normal(60, 8, seed=1)
    expected, order = neighbors.NearestNeighbors(n_neighbors=5).fit(references.numpy()).kneighbors(queries.numpy())
    distances, places = nearest_neighbours(queries, references, k=5, chunk=16)
    assert places.tolist() == order.tolist()
    assert distances.numpy() == pytest.approx(expected, rel=1e-5)


def test_copy_of_a_reference_is_found_at_distance_zero_far_from_the_origin():
    references = normal(100, 64) + 1000
    distances, places = nearest_neighbours(references[[17, 3]], references, chunk=32)
    assert distances[:, 0].tolist() == [0, 0]
    assert places[:, 0].tolist() == [17, 3]


def test_nearest_of_almost_equal_references_is_told_apart():
    query = torch.full((1, 32), 1000.0, dtype=torch.float64)
    references = query + torch.tensor([3e-4, 1e-4, 2e-4], dtype=torch.float64)[:, None]
    distances, places = nearest_neighbours(query, references, k=3)
    assert places.tolist() == [[1, 2, 0]]
    assert distances[0].tolist() == pytest.approx([1e-4 * 32**0.5 * step for step in (1, 2, 3)], rel=1e-6)


def test_nearest_references_never_need_the_whole_distance_matrix():
    queries, references = normal(600, 4), normal(700, 4, seed=1)
    with LargestTensor() as largest:
        nearest_neighbours(queries, references, k=2, chunk=32)
    assert largest.size < 600 * 700 / 100


def test_no_queries_have_no_neighbours():
    distances, places = nearest_neighbours(torch.zeros(0, 4), normal(5, 4), k=2)
    assert distances.shape == places.shape == (0, 2)


@pytest.mark.parametrize(
    ("queries", "references", "k", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), 1, r"\(2, 3\) and \(2, 4\)"),
        (torch.zeros(2, 3), torch.zeros(2, 3), 3, "k=3 nearest of 2"),
        (torch.zeros(2, 3), torch.zeros(0, 3), 1, "k=1 nearest of 0"),
        (torch.full((2, 3), torch.nan), torch.zeros(2, 3), 1, "not finite"),
    ],
)
def test_nearest_references_that_cannot_be_found_are_refused(queries, references, k, message):
    with pytest.raises(ValueError, match=message):
        nearest_neighbours(queries, references, k)


def test_rows_show_samples_above_their_neighbours():
    training = torch.arange(5.0)[:, None, None, None].expand(5, 1, 2, 2)
    samples = torch.tensor([3.2, 0.1])[:, None, None, None].expand(2, 1, 2, 2)
    _, places = nearest_neighbours(samples.flatten(1), training.flatten(1), k=2)
    rows = neighbour_rows(samples, places, lambda place: training[place])
    assert [row[:, 0, 0, 0].tolist() for row in rows] == [pytest.approx([3.2, 0.1]), [3, 0], [4, 1]]
