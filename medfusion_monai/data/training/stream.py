"""Order and random numbers of the training images, as functions of seed and position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from monai.transforms import Randomizable
from monai.utils import convert_to_tensor
from torch.utils.data import Dataset, Sampler

from medfusion_monai.data.training.class_shares import balanced_order
from medfusion_monai.runtime.seeds import derive_seed


class SeededDataset(Dataset):
    """A dataset as an endless stream: position ``p`` has the same item and random numbers in every run.

    Each pass over the data has its own order. Each item carries ``seed``, from which the trainers draw its noise;
    training therefore does not depend on batch size, workers, processes or restarts.

    Args:
        dataset: items are dictionaries, e.g. ``LatentDataset.images``, without random transforms.
        random_transform: applied to each item with a random state of its own.
        seed: seed of the orders, the transforms and the items' seeds.
        shuffle: whether passes have random orders; False for validation.
        labels: labels of the items, in the order of the dataset; required with ``shares``.
        shares: shares of the classes, in label order and summing to 1, from ``training_shares``; None takes each item
            once per pass.

    Raises:
        ValueError: for an empty dataset, and for shares without a label per item.
    """

    def __init__(
        self,
        dataset: Any,
        random_transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        seed: int = 0,
        shuffle: bool = True,
        labels: Sequence[int] | None = None,
        shares: Sequence[float] | None = None,
    ) -> None:
        self.dataset = dataset
        if len(self.dataset) == 0:
            raise ValueError("the dataset is empty: there is nothing to train on")
        self.labels = np.asarray([] if labels is None else labels)
        if shares is not None and len(self.labels) != len(self.dataset):
            raise ValueError(f"shares need a label for each of {len(self.dataset)} items, received {len(self.labels)}")
        self.random_transform = random_transform
        self.seed, self.shuffle, self.shares = seed, shuffle, shares
        self._order: tuple[int, np.ndarray] = (-1, np.arange(len(self.dataset)))

    def __len__(self) -> int:
        """Return the number of items per pass."""
        return len(self.dataset)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Return the item at any position from 0 on: ``image`` or ``moments``, ``label``, and its ``seed``."""
        pass_number, offset = divmod(position, len(self))
        item = self.dataset[int(self.order(pass_number)[offset])]
        seed = derive_seed("item", self.seed, position)
        if self.random_transform is not None:
            if isinstance(self.random_transform, Randomizable):
                self.random_transform.set_random_state(seed=seed % 2**32)
            item = self.random_transform({**item, "image": item["image"].clone()})  # the original may be in a cache
        tensors = {
            name: convert_to_tensor(item[name]) for name in ("image", "moments") if name in item
        }  # no MetaTensor
        return {**tensors, "label": item["label"], "seed": seed}

    def order(self, pass_number: int) -> np.ndarray:
        """Return the indices (len(self),) in the order of a pass."""
        if self.shuffle and self._order[0] != pass_number:
            self._order = pass_number, self._shuffled(pass_number)
        return self._order[1]

    def _shuffled(self, pass_number: int) -> np.ndarray:
        if self.shares is not None:
            return balanced_order(self.labels, self.shares, self.seed, pass_number)
        return np.random.default_rng(derive_seed("order", self.seed, pass_number)).permutation(len(self))


class StreamSampler(Sampler[list[int]]):
    """Endless batches of consecutive positions from ``start_iteration`` on; each process gets its share.

    Args:
        batch_size: items per batch and process.
        rank: number of this process.
        world_size: number of processes.

    Raises:
        ValueError: for a batch size below 1.
    """

    def __init__(self, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, received {batch_size}")
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.start_iteration = 0

    def __iter__(self) -> Iterator[list[int]]:
        """Yield lists of ``batch_size`` positions for ``SeededDataset``."""
        first = (self.start_iteration * self.world_size + self.rank) * self.batch_size
        while True:
            yield list(range(first, first + self.batch_size))
            first += self.world_size * self.batch_size
