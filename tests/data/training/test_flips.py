import pytest
import torch
from monai.data import MetaTensor
from torch.utils.data import DataLoader

from medfusion_monai.data.training.flips import FlippedDataset, check_flips, for_each_variant
from medfusion_monai.data.training.stream import SeededDataset

IMAGE = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
FLIPPED = {
    "horizontal": [[[2.0, 1.0], [4.0, 3.0], [6.0, 5.0]]],
    "vertical": [[[5.0, 6.0], [3.0, 4.0], [1.0, 2.0]]],
    "both": [[[6.0, 5.0], [4.0, 3.0], [2.0, 1.0]]],
}


class Counting:
    """Items whose image is IMAGE plus ten times their index; counts the reads of each."""

    def __init__(self, count):
        self.read = [0] * count

    def __len__(self):
        return len(self.read)

    def __getitem__(self, index):
        self.read[index] += 1
        return {"image": IMAGE + 10 * index, "label": index, "patient": f"p{index}"}


@pytest.mark.parametrize("name", FLIPPED)
def test_second_entry_of_an_image_is_its_flip(name):
    images = FlippedDataset(Counting(1), [name])
    assert len(images) == 2
    assert torch.equal(images[0]["image"], IMAGE)
    assert images[1]["image"].tolist() == FLIPPED[name]


def test_entries_are_the_variants_of_one_image_after_the_other():
    images = FlippedDataset(Counting(3), ["both", "horizontal"])
    variants = [IMAGE, torch.tensor(FLIPPED["both"]), torch.tensor(FLIPPED["horizontal"])]
    for index in (8, 0, 4, 1, 2, 3, 5, 7, 6):
        item = images[index]
        assert torch.equal(item["image"], variants[index % 3] + 10 * (index // 3))
        assert (item["label"], item["patient"]) == (index // 3, f"p{index // 3}")


def test_flipping_leaves_the_item_of_the_dataset_as_it_is():
    items = [{"image": IMAGE.clone(), "label": 0}]
    FlippedDataset(items, ["vertical"])[1]["image"].zero_()
    assert torch.equal(items[0]["image"], IMAGE)


def test_image_is_read_once_for_all_its_variants_in_a_row():
    source = Counting(4)
    images = FlippedDataset(source, ["horizontal", "vertical", "both"])
    for index in range(len(images)):
        images[index]
    assert source.read == [1, 1, 1, 1]


def test_without_flips_items_are_those_of_the_dataset():
    images = FlippedDataset(Counting(3))
    assert len(images) == 3
    assert torch.equal(images[2]["image"], IMAGE + 20)


def test_flips_of_a_monai_image_can_be_batched():
    images = FlippedDataset([{"image": MetaTensor(IMAGE), "label": 0}], ["horizontal"])
    (batch,) = DataLoader(images, batch_size=2)
    assert batch["image"][1].tolist() == FLIPPED["horizontal"]


@pytest.mark.parametrize("flips", ["horizontal", ["diagonal"], ["both", "both"], None, {"both": 1}, [1]])
def test_other_flips_are_refused_with_the_choices(flips):
    with pytest.raises(
        ValueError, match="latent_flips must be a list with any of horizontal, vertical, both.*received"
    ):
        check_flips(flips)


def test_what_belongs_to_an_image_is_repeated_for_its_variants():
    images = FlippedDataset(Counting(2), ["horizontal", "both"])
    assert for_each_variant([7, 9], images.flips) == [7, 7, 7, 9, 9, 9]


def test_shares_of_classes_hold_over_flips():
    images = FlippedDataset(Counting(4), ["horizontal"])
    labels = for_each_variant([0, 1, 1, 1], images.flips)
    stream = SeededDataset(images, labels=labels, shares=[0.5, 0.5])
    drawn = [labels[index] for index in stream.order(0)]
    assert sorted(drawn) == [0] * 4 + [1] * 4
