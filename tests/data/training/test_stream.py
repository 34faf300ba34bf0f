from itertools import islice

import pytest
import torch
from monai.data import CacheDataset
from monai.transforms import Compose, RandAffined, RandFlipd
from torch.utils.data import DataLoader

from medfusion_monai.data.training.stream import SeededDataset, StreamSampler


def random_flip():
    return RandFlipd("image", prob=0.5, spatial_axis=1)


def random_affine():
    return RandAffined("image", prob=1.0, rotate_range=1.0, translate_range=2.0, padding_mode="zeros")


RANDOM_TRANSFORMS = {
    "flip": random_flip,
    "affine": random_affine,
    "both": lambda: Compose([random_flip(), random_affine()]),
}


def numbered_items(count=6):
    """Make items with different labels, each with an asymmetric image."""
    images = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    return [{"image": image, "label": number, "patient": "p"} for number, image in enumerate(images)]


def labels_of_pass(dataset, number):
    return [dataset[position]["label"] for position in range(number * len(dataset), (number + 1) * len(dataset))]


def first_batches(dataset, sampler, count, num_workers=0):
    return list(islice(DataLoader(dataset, batch_sampler=sampler, num_workers=num_workers), count))


def test_each_pass_holds_every_item_once():
    dataset = SeededDataset(numbered_items(), seed=1)
    for number in range(5):
        assert sorted(labels_of_pass(dataset, number)) == [0, 1, 2, 3, 4, 5]


def test_order_differs_between_passes_and_seeds():
    one, other = (SeededDataset(numbered_items(20), seed=seed) for seed in (1, 2))
    orders = [tuple(labels_of_pass(dataset, number)) for dataset in (one, other) for number in range(4)]
    assert len(set(orders)) == 8
    assert tuple(range(20)) not in orders


def test_without_shuffling_each_pass_is_in_the_order_of_the_data():
    dataset = SeededDataset(numbered_items(), shuffle=False)
    assert [labels_of_pass(dataset, number) for number in range(3)] == [[0, 1, 2, 3, 4, 5]] * 3


def test_item_is_a_function_of_its_position_whatever_was_read_before():
    transform = RANDOM_TRANSFORMS["both"]
    forward, backward = (SeededDataset(numbered_items(), transform(), seed=1) for _ in range(2))
    read = {position: forward[position] for position in range(20)}
    for position in reversed(range(20)):
        item = backward[position]
        assert item["label"] == read[position]["label"]
        assert item["seed"] == read[position]["seed"]
        assert torch.equal(item["image"], read[position]["image"])


def test_seeds_of_items_differ_between_positions_and_runs():
    seeds = [SeededDataset(numbered_items(), seed=seed)[position]["seed"] for seed in (1, 2) for position in range(30)]
    assert len(set(seeds)) == 60
    assert min(seeds) >= 0
    assert max(seeds) < 2**63


def test_items_hold_what_trainers_need_and_their_own_data():
    items = numbered_items()
    item = SeededDataset(items, shuffle=False)[8]
    assert item.keys() == {"image", "label", "seed"}
    assert torch.equal(item["image"], items[2]["image"])
    assert item["label"] == 2


def test_items_with_moments_in_place_of_an_image_keep_them():
    item = SeededDataset([{"moments": torch.ones(4, 2, 2), "label": 1, "patient": "p"}])[0]
    assert item.keys() == {"moments", "label", "seed"}
    assert torch.equal(item["moments"], torch.ones(4, 2, 2))


@pytest.mark.parametrize("name", RANDOM_TRANSFORMS)
def test_random_transform_is_the_same_on_reading_again_and_differs_between_passes(name):
    dataset = SeededDataset(numbered_items(1), RANDOM_TRANSFORMS[name](), seed=4)
    images = [dataset[position]["image"] for position in range(12)]
    for position, image in enumerate(images):
        assert torch.equal(dataset[position]["image"], image)
    distinct = {tuple(image.flatten().tolist()) for image in images}
    assert len(distinct) == (2 if name == "flip" else 12)


def test_random_transform_does_not_touch_the_cached_item():
    cached = CacheDataset(numbered_items(2), transform=[], progress=False)
    before = [cached[index]["image"].clone() for index in range(2)]
    dataset = SeededDataset(cached, RANDOM_TRANSFORMS["both"](), seed=4)
    assert any(not torch.equal(dataset[position]["image"], before[0]) for position in range(4))
    for index in range(2):
        assert torch.equal(cached[index]["image"], before[index])


def test_function_without_a_random_state_is_a_transform_too():
    dataset = SeededDataset(numbered_items(), lambda item: {**item, "image": -item["image"]}, shuffle=False)
    assert torch.equal(dataset[1]["image"], -numbered_items()[1]["image"])


def test_batches_are_the_same_with_any_number_of_workers():
    runs = []
    for workers in (0, 2):
        dataset = SeededDataset(numbered_items(5), RANDOM_TRANSFORMS["both"](), seed=2)
        runs.append(first_batches(dataset, StreamSampler(3), 5, workers))
    for here, there in zip(*runs, strict=True):
        assert torch.equal(here["image"], there["image"])
        assert torch.equal(here["label"], there["label"])
        assert torch.equal(here["seed"], there["seed"])


def test_order_does_not_depend_on_the_batch_size():
    dataset = SeededDataset(numbered_items(5), seed=2)
    small, large = (first_batches(dataset, StreamSampler(size), 12 // size) for size in (2, 6))
    assert torch.equal(torch.cat([batch["seed"] for batch in small]), torch.cat([batch["seed"] for batch in large]))


def test_batches_are_consecutive_positions_without_end():
    assert list(islice(StreamSampler(3), 4)) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


@pytest.mark.parametrize("start", [0, 7])
def test_shares_of_two_processes_make_up_the_batches_of_one_with_twice_the_size(start):
    shares = [StreamSampler(3, rank, world_size=2) for rank in range(2)]
    one = StreamSampler(6)
    for sampler in (*shares, one):
        sampler.start_iteration = start
    together = [first + second for first, second in islice(zip(*shares, strict=True), 5)]
    assert together == list(islice(one, 5))


def test_sampler_goes_on_where_it_was_told_to():
    whole, rest = StreamSampler(4), StreamSampler(4)
    rest.start_iteration = 5
    assert list(islice(rest, 3)) == list(islice(whole, 8))[5:]


def test_empty_dataset_is_refused():
    with pytest.raises(ValueError, match="the dataset is empty"):
        SeededDataset([])


@pytest.mark.parametrize("size", [0, -2])
def test_batch_size_below_one_is_refused(size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, received {size}"):
        StreamSampler(size)


def test_augmentation_in_place_does_not_reach_the_dataset():
    images = [{"image": torch.ones(1, 4, 4), "label": 0}]

    def darken(item):
        item["image"].zero_()
        return item

    assert SeededDataset(images, darken)[0]["image"].sum() == 0
    assert images[0]["image"].sum() == 16


def test_order_without_shares_is_that_of_earlier_versions():
    dataset = SeededDataset(numbered_items(12), seed=5)
    assert [dataset.order(number).tolist() for number in range(3)] == [
        [6, 5, 1, 2, 0, 7, 8, 10, 4, 11, 3, 9],
        [8, 2, 4, 0, 3, 5, 9, 10, 7, 1, 6, 11],
        [0, 9, 1, 6, 5, 2, 11, 8, 4, 7, 10, 3],
    ]
    assert [dataset[position]["seed"] for position in (0, 13)] == [4278406989867566734, 5437306297806031306]


def imbalanced(**keywords):
    items = [{**item, "number": number, "label": int(number >= 18)} for number, item in enumerate(numbered_items(20))]
    return SeededDataset(items, seed=2, labels=[item["label"] for item in items], **keywords)


def test_shares_bring_each_class_as_often_as_they_say():
    dataset = imbalanced(shares=[0.5, 0.5])
    assert [sum(labels_of_pass(dataset, number)) for number in range(3)] == [10, 10, 10]


def test_shares_do_not_touch_an_order_that_is_not_shuffled():
    assert labels_of_pass(imbalanced(shares=[0.5, 0.5], shuffle=False), 4) == [0] * 18 + [1] * 2


def test_position_with_shares_is_the_same_whatever_was_read_before():
    forward, backward = imbalanced(shares=[0.6, 0.4]), imbalanced(shares=[0.6, 0.4])
    read = [forward[position]["image"] for position in range(70)]
    for position in (65, 3, 41, 22):
        assert torch.equal(backward[position]["image"], read[position])


def test_two_processes_with_shares_see_the_batches_of_one():
    dataset = imbalanced(shares=[0.5, 0.5])
    halves = [first_batches(dataset, StreamSampler(3, rank, world_size=2), 8) for rank in range(2)]
    together = [torch.cat([a["seed"], b["seed"]]) for a, b in zip(*halves, strict=True)]
    whole = first_batches(dataset, StreamSampler(6), 8, num_workers=2)
    assert all(torch.equal(part, batch["seed"]) for part, batch in zip(together, whole, strict=True))


def test_shares_without_labels_are_refused():
    with pytest.raises(ValueError, match="a label for each of 6 items, received 2"):
        SeededDataset(numbered_items(), labels=[0, 1], shares=[0.5, 0.5])
